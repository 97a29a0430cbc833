// One OpenMP runtime: the one PyTorch has loaded, found by name. Without it everything runs in the calling thread.
#pragma once
#include <dlfcn.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>

namespace glider {

struct Runtime {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*max_threads)() = nullptr;
    int (*number)() = nullptr;
    int (*nested)() = nullptr;
    double waking = 20;  // microseconds of work that are worth another thread

    // Look in the libraries that libtorch_cpu itself was linked to: other packages may have loaded runtimes of their own.
    bool find(const char* library) {
        void* torch = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
        if (!torch) return false;
        bool all = symbol(torch, "GOMP_parallel", parallel) &
                   symbol(torch, "omp_get_max_threads", max_threads) & symbol(torch, "omp_get_thread_num", number) &
                   symbol(torch, "omp_in_parallel", nested);
        if (!all) parallel = nullptr;
        const char* policy = getenv("OMP_WAIT_POLICY");
        if (policy && (policy[0] == 'P' || policy[0] == 'p')) waking = 50;  // passive: idle threads sleep
        return all;
    }

    int available() const { return parallel && !nested() ? max_threads() : 1; }

  private:
    template <typename F> static bool symbol(void* library, const char* name, F& target) {
        target = reinterpret_cast<F>(dlsym(library, name));
        return target != nullptr;
    }
};

inline Runtime& runtime() {
    static Runtime found;
    return found;
}

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A part of a call whose pieces the threads take one by one, whoever is awake: a runtime whose idle threads sleep
// (OMP_WAIT_POLICY=PASSIVE) takes as long to wake one as many a call has work. All go on when all pieces are done.
class Stage {
    static constexpr std::chrono::microseconds LOOKING{50};  // for the last piece, before a thread sleeps
    std::atomic<uint64_t> taken{0};  // a bit for each piece
    std::atomic<int32_t> done{0}, sleeping{0}, over{0};

    // The thread's own piece if nobody has it, which is of what its cache holds, or else another; -1 where all are taken.
    int take(int pieces, int own) {
        uint64_t all = pieces < MOST_PIECES ? (uint64_t(1) << pieces) - 1 : ~uint64_t(0);
        for (uint64_t free; (free = all & ~taken.load(std::memory_order_relaxed));) {
            int i = own < pieces && free >> own & 1 ? own : __builtin_ctzll(free);
            if (!(taken.fetch_or(uint64_t(1) << i, std::memory_order_relaxed) >> i & 1)) return i;
        }
        return -1;
    }

    void finish() {
        over.store(1);
#ifdef __linux__
        if (sleeping.load()) syscall(SYS_futex, &over, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
    }

    void wait() {
        auto until = std::chrono::steady_clock::now() + LOOKING;
        do {
            for (int i = 0; i < 16; ++i) {
                if (over.load(std::memory_order_acquire)) return;
                pause();
            }
        } while (std::chrono::steady_clock::now() < until);
#ifdef __linux__
        sleeping.fetch_add(1);
        while (!over.load()) syscall(SYS_futex, &over, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
#else
        while (!over.load()) sched_yield();
#endif
    }

  public:
    static constexpr int MOST_PIECES = 64;

    template <typename Piece, typename After> void share(int pieces, int own, Piece piece, After after) {
        for (int i; (i = take(pieces, own)) >= 0;) {
            piece(i);
            if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < pieces) continue;
            after();
            return finish();
        }
        wait();
    }
};

// The threads that answer one call.
struct Team {
    int count = 1, index = 0;
    Stage* stages = nullptr;  // of more than one thread, in the order that all come to them

    // Into how many pieces a part of `total`, in multiples of `grain`, is cut.
    int pieces(int64_t total, int64_t grain) const {
        int64_t grains = (total + grain - 1) / grain, most = count < Stage::MOST_PIECES ? count : Stage::MOST_PIECES;
        return (int)(grains < most ? grains : most);
    }
    // Do `piece` for each number below `pieces`, one at the least; when all are done, one thread does `after` before any
    // goes on.
    template <typename Piece, typename After> void share(int pieces, Piece piece, After after) {
        if (count > 1) return (stages++)->share(pieces, index, piece, after);
        for (int i = 0; i < pieces; ++i) piece(i);
        after();
    }
    template <typename Piece> void share(int pieces, Piece piece) {
        share(pieces, piece, [] {});
    }
};

// The part of `total` that piece `i` of `pieces` has, in multiples of `grain`.
struct Part {
    int64_t from, to;
    Part(int64_t i, int64_t pieces, int64_t total, int64_t grain) {
        int64_t grains = (total + grain - 1) / grain;
        from = grains * i / pieces * grain, to = grains * (i + 1) / pieces * grain;
        if (from > total) from = total;
        if (to > total) to = total;
    }
};

}  // namespace glider
