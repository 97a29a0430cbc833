// One OpenMP runtime: the one PyTorch has loaded, found by name. Without it everything runs in the calling thread.
#pragma once
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>

namespace glider {

struct Runtime {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    void (*barrier)() = nullptr;
    int (*max_threads)() = nullptr;
    int (*threads)() = nullptr;
    int (*number)() = nullptr;
    int (*nested)() = nullptr;
    double waking = 20;  // microseconds of work that are worth another thread

    // Look in the libraries that libtorch_cpu itself was linked to: other packages may have loaded runtimes of their own.
    bool find(const char* library) {
        void* torch = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
        if (!torch) return false;
        bool all = symbol(torch, "GOMP_parallel", parallel) & symbol(torch, "GOMP_barrier", barrier) &
                   symbol(torch, "omp_get_max_threads", max_threads) & symbol(torch, "omp_get_num_threads", threads) &
                   symbol(torch, "omp_get_thread_num", number) & symbol(torch, "omp_in_parallel", nested);
        if (!all) parallel = nullptr;
        const char* policy = getenv("OMP_WAIT_POLICY");
        if (policy && (policy[0] == 'P' || policy[0] == 'p')) waking = 100;  // passive: idle threads sleep
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

// The threads that answer one call.
struct Team {
    int count = 1, index = 0;
    void wait() const {
        if (count > 1) runtime().barrier();
    }
    // The team member's share of `total`, in multiples of `grain`.
    void share(int64_t total, int64_t grain, int64_t& from, int64_t& to) const {
        int64_t grains = (total + grain - 1) / grain;
        from = grains * index / count * grain;
        to = grains * (index + 1) / count * grain;
        if (from > total) from = total;
        if (to > total) to = total;
    }
};

}  // namespace glider
