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
#undef TARGET
#undef LANES
#undef DOT_TOKENS
#undef ADD_TOKENS
#undef PANEL_MANY
#undef PANEL_FEW
#undef PANEL_WIDE
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
#undef TARGET
#undef LANES
#undef DOT_TOKENS
#undef ADD_TOKENS
#undef PANEL_MANY
#undef PANEL_FEW
#undef PANEL_WIDE
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
#undef TARGET
#undef LANES
#undef DOT_TOKENS
#undef ADD_TOKENS
#undef PANEL_MANY
#undef PANEL_FEW
#undef PANEL_WIDE
}  // namespace portable

struct Plan {
    int threads;
    bool together, coded;  // the team shares the scores of each token; 8-bit rows make a shortlist
};

// What a call takes in one thread, in microseconds: products that are in the caches, and bytes that are not.
constexpr double PRODUCTS = 3e4, BYTES = 2e4;
constexpr int64_t FEW_TOKENS = 16;

inline double estimate(const Site& site, const Call& call, int64_t kept, bool coded) {
    double rows = call.experts || !site.rows ? 0.0 : double(site.experts) * site.width;
    double pairs = call.experts_out ? 0.0 : double(call.tokens) * kept;
    double pair = double(site.rank) * (site.width + site.out), size = site.stored == Stored::bfloat16 ? 2 : 4;
    double used = pairs < site.experts ? pairs : site.experts;
    return (call.tokens * rows + pairs * pair) / PRODUCTS + (rows * (coded ? 1 : 4) + used * pair * size) / BYTES;
}

// As many threads as have a share each that is worth waking them.
inline Plan plan(const Site& site, const Call& call, int64_t kept) {
    Plan made{1, false, site.codes && call.tokens <= FEW_TOKENS};
    double shares = estimate(site, call, kept, made.coded) / runtime().waking;
    if (shares >= 2) {
        int64_t available = runtime().available();
        made.threads = (int)(shares < available ? shares : available);
    }
    made.together = made.threads > 1 && call.tokens < FEW_TOKENS;
    return made;
}

// What the threads of a call have in common.
template <typename Work> struct Errand {
    static constexpr int MOST_STAGES = 4;  // scores, decisions, products with A and with B
    Work work;
    Plan plan;
    Stage stages[MOST_STAGES]{};

    static void member(void* data) {
        Errand& errand = *static_cast<Errand*>(data);
        Team team{errand.plan.threads, errand.plan.threads > 1 ? runtime().number() : 0, errand.stages};
        Work own = errand.work;
        own.run(team, errand.plan.together, errand.plan.coded);
    }
    void run() {
        if (plan.threads > 1)
            runtime().parallel(member, this, plan.threads, 0);
        else
            member(this);
    }
};

// Answer a call. False if a given decision names an expert that does not exist; then y is as it was.
template <typename Work, typename Runs> bool answer(const Site& site, const Call& call) {
    static thread_local Scratch memory;
    int64_t kept = call.experts ? call.kept : site.kept, all = call.tokens * kept;
    if (!all) return true;
    Plan made = plan(site, call, kept);
    if (call.experts) {
        for (int64_t p = 0; p < all; ++p)
            if (call.experts[p] < 0 || call.experts[p] >= site.experts) return false;
        if (Runs::serves(site, call)) {
            Errand<Runs> errand{Runs{site, call, kept}, made};
            errand.run();
            return true;
        }
    }
    size_t bytes = Carver::padded(made.together ? call.tokens * site.experts * 4 : 0) + 3 * Carver::padded(all * 4) +
                   Carver::padded(all * 8) + Carver::padded((site.experts + 1) * 4) +
                   Carver::padded(all * site.rank * 4);
    Carver carver{static_cast<char*>(memory.get(bytes))};
    float* scores = carver.take<float>(made.together ? call.tokens * site.experts : 0);
    int32_t* chosen = carver.take<int32_t>(all);
    float* weights = carver.take<float>(all);
    int32_t* order = carver.take<int32_t>(all);
    int64_t* token = carver.take<int64_t>(all);
    int32_t* starts = carver.take<int32_t>(site.experts + 1);
    float* z = carver.take<float>(all * site.rank);
    if (call.experts) {
        for (int64_t p = 0; p < all; ++p) chosen[p] = (int32_t)call.experts[p];
        memcpy(weights, call.weights, all * sizeof(float));
    }
    int64_t found = 0;
    Errand<Work> errand{Work{site, call, kept, scores, chosen, weights, order, token, starts, z, &found, 0}, made};
    if (call.experts) found = errand.work.sort();
    errand.run();
    if (call.experts_out)
        for (int64_t p = 0; p < all; ++p) call.experts_out[p] = chosen[p], call.weights_out[p] = weights[p];
    return true;
}

template <typename X> inline void standardise_row(const X* x, int64_t width, float* u) {
#ifdef GLIDER_X86
    if (chosen_isa() >= Isa::avx512) return avx512::standard_form(x, width, u);
    if (chosen_isa() == Isa::avx2) return avx2::standard_form(x, width, u);
#endif
    portable::standard_form(x, width, u);
}

inline bool run(const Site& site, const Call& call) {
#ifdef GLIDER_X86
    if (chosen_isa() >= Isa::avx512) return answer<avx512::Work, avx512::Runs>(site, call);
    if (chosen_isa() == Isa::avx2) return answer<avx2::Work, avx2::Runs>(site, call);
#endif
    return answer<portable::Work, portable::Runs>(site, call);
}

// Answer a call for several sites that see its tokens, `call.y` each one's own. Few tokens are brought into standard form
// once for all sites.
inline bool run_all(Site* const* sites, void* const* outputs, int64_t count, Call call) {
    static thread_local Scratch memory;
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
    bool good = true;
    for (int64_t i = 0; good && i < count; ++i) {
        call.y = outputs[i];
        good = run(*sites[i], call);
    }
    return good;
}

}  // namespace glider
