// What the kernels work on: a routed layer (constant), a call of it, and the team of threads that answers the call.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace glider {

enum class Stored : int { float32 = 0, bfloat16 = 1 };

template <typename T> constexpr bool is_float32() { return sizeof(T) == 4; }

// One routed layer. Tensors belong to the caller, who keeps them alive; the small arrays belong to the site.
struct Site {
    int64_t experts, rank, width, out;
    Stored stored;        // of `a` and `b`
    const void* a;        // (E, R, D)
    const void* b;        // (E, R, O)
    float* scaling;       // (E)
    const float* rows;    // (E, D) what x is multiplied with to score the experts, or null: all scores are zero
    uint8_t* absent;      // (E) 1 where an expert is not at this site
    bool standardise;     // x, to zero mean and unit variance, before the scores
    bool absolute;        // the score is a magnitude
    bool renormalise;     // weights sum to one over the kept experts
    float divisor;        // of the scores
    int64_t kept;         // K
    int8_t* codes;        // (E, D) rows / step, rounded; null without a shortlist
    float* step;          // (E)
    float* residual;      // (E) length of rows - codes * step
    float* length;        // (E) length of rows
    float longest;        // of these
};

// One call: x (T, D) in, y (T, O) added to, both in one type; the arithmetic is float32. Either the site decides, by its scores and the queries' global term, or the
// decision is given. Rows of x and y may be some of longer ones, and lie further apart than they are wide.
struct Call {
    const void* x;
    void* y;
    Stored values;               // of `x` and `y`
    int64_t tokens;
    int64_t x_stride, y_stride;  // between rows; 0: they lie side by side
    const int64_t* index;        // (T) each token's row of x and y, or null: in order
    const float* standard;       // (T, D) the tokens in standard form, where that is known, or null
    const float* term;           // (B, E) or null
    int64_t queries;             // B; tokens of one query stand together unless a map is given
    const int64_t* query_of;     // (T) or null
    const int64_t* experts;      // (T, K) a decision, or null
    const float* weights;        // (T, K)
    int64_t kept;                // K of the decision
    int64_t* experts_out;        // (T, K) where the site's decision goes instead of y, or null
    float* weights_out;          // (T, K)

    int64_t row(int64_t token) const { return index ? index[token] : token; }
    template <typename X> const X* x_of(const Site& site, int64_t token) const {
        return static_cast<const X*>(x) + row(token) * (x_stride ? x_stride : site.width);
    }
    template <typename X> X* y_of(const Site& site, int64_t token) const {
        return static_cast<X*>(y) + row(token) * (y_stride ? y_stride : site.out);
    }
};

// Memory of one thread that grows to what is asked of it and is kept for the next call.
struct Scratch {
    void* memory = nullptr;
    size_t size = 0;
    ~Scratch() { free(memory); }
    void* get(size_t bytes) {
        if (bytes > size) {
            free(memory);
            size = (bytes + 4095) / 4096 * 4096;
            memory = aligned_alloc(64, size);
            if (!memory) {
                size = 0;
                abort();
            }
        }
        return memory;
    }
};

// A part of a scratch at a time, each aligned to a cache line.
struct Carver {
    char* at;
    template <typename T> T* take(int64_t count) {
        T* part = reinterpret_cast<T*>(at);
        at += padded(count * sizeof(T));
        return part;
    }
    static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }
};

}  // namespace glider
