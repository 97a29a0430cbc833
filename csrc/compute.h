// The kernels, compiled once for each instruction set, and the one that this machine runs.
#pragma once
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <type_traits>

#include "shortlist.h"
#include "site.h"
#include "threads.h"
#include "tiles.h"

#if defined(__x86_64__)
#define GLIDER_X86 1
#include <immintrin.h>
#endif

#ifndef __has_builtin
#define __has_builtin(x) 0
#endif

namespace glider {

typedef float V4 __attribute__((vector_size(16)));
typedef float V8 __attribute__((vector_size(32)));

constexpr int64_t TOKENS_AT_ONCE = 64, ROWS_AT_ONCE = 8, SEGMENT = 48, EXPECTED_PAIRS = 32;
constexpr int64_t DEPTH = 512;                          // columns of x whose products are summed by themselves
constexpr int64_t PANEL_FROM = 12, PANEL_MOST = 1 << 20;  // tokens that factors are laid out anew for; floats of these
constexpr int64_t RUN_OF_TOKENS = 16, RUN_EXPERTS = 8;  // tokens with the same experts that are worth a way of their own
constexpr int64_t MOST_RANKS = 128;  // of what tiles are laid out for
constexpr float SCORES_OFF = 4e-7f;  // what adding a global term may round away, of the sum
constexpr int64_t FEW_KEPT = 4;  // experts of a token that whole vectors are compared for, once each
constexpr int64_t LEADING = 16, RUN = 8;  // experts whose scores tell who is in reach; tokens of a query worth asking for

enum class Isa : int { portable, avx2, avx512, amx };  // the last: avx512, and tiles for bfloat16

inline bool supports(Isa isa) {
#ifdef GLIDER_X86
    if (isa == Isa::amx) return supports(Isa::avx512) && may_use_tiles();
    if (isa == Isa::avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return isa == Isa::portable;
}

inline Isa best_isa() {
    for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2})
        if (supports(isa)) return isa;
    return Isa::portable;
}

inline Isa& chosen_isa() {
    static Isa isa = best_isa();
    return isa;
}

#if defined(GLIDER_X86)
namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define LANES 16
#define DOT_TOKENS 6
#define ADD_TOKENS 4
#define PANEL_MANY 12
#define PANEL_FEW 10
#define PANEL_WIDE 2
#include "compute.inc"
}  // namespace avx512
namespace avx2 {
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define DOT_TOKENS 3
#define ADD_TOKENS 2
#define PANEL_MANY 10
#define PANEL_FEW 6
#define PANEL_WIDE 2
#include "compute.inc"
}  // namespace avx2
#endif
namespace portable {  // four lanes: SSE2, NEON, or what the compiler makes of them
#define TARGET
#define LANES 4
#define DOT_TOKENS 3
#define ADD_TOKENS 2
#define PANEL_MANY 10
#define PANEL_FEW 6
#define PANEL_WIDE 2
#include "compute.inc"
}  // namespace portable

// What a call takes in one thread, in microseconds: products that are in the caches, and bytes that are not.
constexpr double PRODUCTS = 3e4, BYTES = 2e4;
constexpr int64_t FEW_TOKENS = 16;

inline double estimate(const Site& site, const Call& call, bool coded) {
    double rows = call.experts || !site.rows ? 0.0 : double(site.experts) * site.width;
    double pairs = call.experts_out ? 0.0 : double(call.tokens) * (call.experts ? call.kept : site.kept);
    double pair = double(site.rank) * (site.width + site.out), size = site.stored == Stored::bfloat16 ? 2 : 4;
    double used = pairs < site.experts ? pairs : site.experts;
    return (call.tokens * rows + pairs * pair) / PRODUCTS + (rows * (coded ? 1 : 4) + used * pair * size) / BYTES;
}

constexpr int MOST_SITES = 8, MOST_STAGES = 4;  // of a call; of a site: scores, decisions, products with A and with B

// Several sites' part of a call, and the threads that answer it: as many as have a share each that is worth waking them.
struct Plan {
    int64_t count;
    const Site* const* sites;
    void* const* outputs;
    int threads = 1;

    Plan(const Site* const* sites, void* const* outputs, int64_t count, const Call& call)
        : count(count), sites(sites), outputs(outputs) {
        double work = 0;
        for (int64_t i = 0; i < count; ++i) work += estimate(*sites[i], call, coded(i, call));
        double shares = work / runtime().waking;
        if (shares < 2) return;
        int64_t available = runtime().available();
        threads = (int)(shares < available ? shares : available);
    }
    // Whether 8-bit rows make a shortlist.
    bool coded(int64_t i, const Call& call) const { return sites[i]->codes && call.tokens <= FEW_TOKENS; }
    // Whether the team shares the scores of each token.
    bool together(const Call& call) const { return threads > 1 && call.tokens < FEW_TOKENS; }
};

// One site's part of a call, in memory that the threads have in common.
template <typename Work, typename Runs> struct Job {
    Site site;
    Call call;
    bool in_runs, together, coded;
    int64_t kept, found = 0;
    Stage stages[MOST_STAGES]{};
    int32_t* chosen = nullptr;
    float* weights = nullptr;
    std::optional<Work> work;

    Job(const Plan& plan, int64_t i, const Call& of_all)
        : site(*plan.sites[i]), call(of_all), together(plan.together(of_all)), coded(plan.coded(i, of_all)) {
        call.y = plan.outputs[i];
        kept = call.experts ? call.kept : site.kept;
        in_runs = Runs::serves(site, call);
    }

    // Whether a given decision names experts that exist.
    bool valid() const {
        for (int64_t p = 0; call.experts && p < call.tokens * kept; ++p)
            if (call.experts[p] < 0 || call.experts[p] >= site.experts) return false;
        return true;
    }
    size_t bytes() const {
        int64_t all = call.tokens * kept;
        if (in_runs) return 0;
        return Carver::padded(together ? call.tokens * site.experts * 4 : 0) + 3 * Carver::padded(all * 4) +
               Carver::padded(all * 8) + Carver::padded((site.experts + 1) * 4) + Carver::padded(all * site.rank * 4);
    }
    void begin(Carver& carver) {
        int64_t all = call.tokens * kept;
        if (in_runs) return;
        float* scores = carver.take<float>(together ? call.tokens * site.experts : 0);
        chosen = carver.take<int32_t>(all);
        weights = carver.take<float>(all);
        int32_t* order = carver.take<int32_t>(all);
        int64_t* token = carver.take<int64_t>(all);
        int32_t* starts = carver.take<int32_t>(site.experts + 1);
        float* z = carver.take<float>(all * site.rank);
        work.emplace(Work{site, call, kept, scores, chosen, weights, order, token, starts, z, &found, 0});
        if (!call.experts) return;
        for (int64_t p = 0; p < all; ++p) chosen[p] = (int32_t)call.experts[p];
        memcpy(weights, call.weights, all * sizeof(float));
        found = work->sort();
    }
    void run(Team team) {
        team.stages = stages;
        if (in_runs) return Runs{site, call, kept}.run(team);
        Work own = *work;
        own.run(team, together, coded);
    }
    void end() const {
        for (int64_t p = 0; call.experts_out && p < call.tokens * kept; ++p)
            call.experts_out[p] = chosen[p], call.weights_out[p] = weights[p];
    }
};

// Answer a call by one instruction set; see `run_all`.
template <typename Work, typename Runs> bool answer(const Plan& plan, const Call& call) {
    struct Errand {
        std::optional<Job<Work, Runs>> jobs[MOST_SITES];
        int64_t count;
        int threads;
        static void member(void* data) {
            Errand& errand = *static_cast<Errand*>(data);
            Team team{errand.threads, errand.threads > 1 ? runtime().number() : 0};
            for (int64_t i = 0; i < errand.count; ++i) errand.jobs[i]->run(team);
        }
    } errand;
    static thread_local Scratch memory;
    size_t bytes = 0;
    errand.count = plan.count, errand.threads = plan.threads;
    for (int64_t i = 0; i < plan.count; ++i) {
        errand.jobs[i].emplace(plan, i, call);
        if (!errand.jobs[i]->valid()) return false;
        bytes += errand.jobs[i]->bytes();
    }
    Carver carver{static_cast<char*>(memory.get(bytes))};
    for (int64_t i = 0; i < plan.count; ++i) errand.jobs[i]->begin(carver);
    if (plan.threads > 1)
        runtime().parallel(Errand::member, &errand, plan.threads, 0);
    else
        Errand::member(&errand);
    for (int64_t i = 0; i < plan.count; ++i) errand.jobs[i]->end();
    return true;
}

template <typename X> inline void standardise_row(const X* x, int64_t width, float* u) {
#ifdef GLIDER_X86
    if (chosen_isa() >= Isa::avx512) return avx512::standard_form(x, width, u);
    if (chosen_isa() == Isa::avx2) return avx2::standard_form(x, width, u);
#endif
    portable::standard_form(x, width, u);
}

// Answer a call for several sites that see its tokens, each with outputs of its own. Few tokens are brought into standard
// form once for all sites. False if a given decision names an expert that does not exist; then no output has changed.
inline bool run_all(const Site* const* sites, void* const* outputs, int64_t count, Call call) {
    static thread_local Scratch memory;
    if (!call.tokens || !count) return true;
    bool standardise = count > 1 && !call.experts && call.tokens <= TOKENS_AT_ONCE;
    for (int64_t i = 0; i < count; ++i) standardise &= sites[i]->standardise && sites[i]->rows;
    if (standardise) {
        float* standard = static_cast<float*>(memory.get(call.tokens * sites[0]->width * sizeof(float) + 64));
        for (int64_t t = 0; t < call.tokens; ++t) {
            float* own = standard + t * sites[0]->width;
            if (call.values == Stored::bfloat16)
                standardise_row(call.x_of<uint16_t>(*sites[0], t), sites[0]->width, own);
            else
                standardise_row(call.x_of<float>(*sites[0], t), sites[0]->width, own);
        }
        call.standard = standard;
    }
    Plan plan(sites, outputs, count, call);
#ifdef GLIDER_X86
    if (chosen_isa() >= Isa::avx512) return answer<avx512::Work, avx512::Runs>(plan, call);
    if (chosen_isa() == Isa::avx2) return answer<avx2::Work, avx2::Runs>(plan, call);
#endif
    return answer<portable::Work, portable::Runs>(plan, call);
}

// The same for one site; its outputs are the call's own.
inline bool run(const Site& site, const Call& call) {
    const Site* sites[] = {&site};
    void* outputs[] = {call.y};
    return run_all(sites, outputs, 1, call);
}

}  // namespace glider
