// Runs the kernels over shapes of every remainder, for the sanitizers: nothing is compared, every byte is checked.
#include <cstdio>
#include <thread>
#include <vector>

#include "compute.h"
#include "shortlist.h"

using namespace glider;

namespace {

unsigned state = 1;
float chance() {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) / 8388608.0f - 1.0f;
}

// Exactly as long as it must be, so that one element too far is found.
template <typename T> std::vector<T> values(int64_t count) {
    std::vector<T> made(count);
    for (auto& value : made) {
        float x = chance();
        if (sizeof(T) == 4) {
            memcpy(&value, &x, 4);
        } else {
            uint32_t bits;
            memcpy(&bits, &x, 4);
            value = (T)(bits >> 16);
        }
    }
    return made;
}

template <typename W, typename X = float>
int one(int64_t experts, int64_t rank, int64_t width, int64_t out, int64_t tokens, int64_t kept) {
    auto a = values<W>(experts * rank * width), b = values<W>(experts * rank * out);
    auto rows = values<float>(experts * width), term = values<float>(experts);
    auto x = values<X>(tokens * width), y = values<X>(tokens * out);
    auto scaling = values<float>(experts);
    std::vector<uint8_t> absent(experts);
    absent[0] = experts > 1;
    if (experts > 64)
        for (float& value : term) value *= 100;  // most experts are out of reach then
    std::vector<int64_t> query_of(tokens);
    if (tokens > 2) x[width] = sizeof(X) == 4 ? (X)NAN : (X)0x7fc0;
    int bad = 0;
    for (int flags = 0; flags < 8; ++flags) {
        Site site{};
        site.experts = experts, site.rank = rank, site.width = width, site.out = out;
        site.stored = sizeof(W) == 4 ? Stored::float32 : Stored::bfloat16;
        site.a = a.data(), site.b = b.data(), site.scaling = scaling.data(), site.rows = rows.data();
        site.absent = absent.data();
        site.standardise = flags & 1, site.absolute = flags & 2, site.renormalise = true;
        site.divisor = 2.0f, site.kept = kept < experts ? kept : experts;
        if (flags & 4) make_codes(site);
        Call call{};
        call.values = sizeof(X) == 4 ? Stored::float32 : Stored::bfloat16;
        call.x = x.data(), call.y = y.data(), call.tokens = tokens, call.term = term.data(), call.queries = 1;
        bad += !run(site, call);
        call.query_of = query_of.data();
        bad += !run(site, call);
        std::vector<int64_t> which(tokens * site.kept);
        std::vector<float> weights(tokens * site.kept);
        call.experts_out = which.data(), call.weights_out = weights.data();
        bad += !run(site, call);
        call.experts_out = nullptr, call.experts = which.data(), call.weights = weights.data(), call.kept = site.kept;
        bad += !run(site, call);
        std::vector<int64_t> index;  // some rows, the last among them
        for (int64_t t = tokens - 1; t >= 0; t -= 2) index.push_back(t);
        Site* sites[] = {&site, &site};
        void* outputs[] = {y.data(), y.data()};
        for (int64_t p = 0; p < (int64_t)which.size(); ++p) which[p] = p % site.kept;  // alike for every token
        for (float& weight : weights) weight = 0.5f;
        bad += !run_all(sites, outputs, 2, call);
        call.index = index.data(), call.tokens = index.size();
        bad += !run_all(sites, outputs, 2, call);
        call.experts = nullptr;
        bad += !run_all(sites, outputs, 2, call);
        call.experts = which.data(), call.tokens = tokens, call.index = nullptr;
        if (tokens) {
            which[0] = experts;
            bad += run(site, call);
        }
        free(site.codes), free(site.step), free(site.residual), free(site.length);
    }
    return bad;
}

// A team of three in place of OpenMP's, whose runtime the sanitizers do not see into.
constexpr int TEAM = 3;

thread_local int number = 0;

void parallel(void (*member)(void*), void* data, unsigned, unsigned) {
    std::vector<std::thread> others;
    for (int i = 1; i < TEAM; ++i)
        others.emplace_back([=] {
            number = i;
            member(data);
        });
    member(data);
    for (std::thread& other : others) other.join();
}

int in_teams() {
    Runtime before = runtime();
    runtime().parallel = parallel, runtime().max_threads = [] { return TEAM; }, runtime().nested = [] { return 0; };
    runtime().number = [] { return number; };
    runtime().waking = 1e-9;  // every call is worth three threads
    int bad = 0;
    for (int64_t experts : {3, 70, 97})
        for (int64_t tokens : {0, 1, 15, 16, 49, 110}) {
            bad += one<float>(experts, 9, 37, 70, tokens, 2);
            bad += one<uint16_t, uint16_t>(experts, 16, 37, 130, tokens, 2);
        }
    runtime() = before;
    return bad;
}

int all() {
    int bad = 0;
    for (int64_t experts : {1, 2, 7, 33, 70})
        for (int64_t rank : {1, 4, 9, 20})
            for (int64_t width : {1, 15, 16, 37})
                for (int64_t out : {1, 8, 70})
                    for (int64_t tokens : {0, 1, 3, 8, 71}) {
                        if ((experts > 64 && (rank != 4 || out != 8)) || (rank > 16 && out != 70)) continue;
                        bad += one<float>(experts, rank, width, out, tokens, 2);
                        bad += one<uint16_t>(experts, rank, width, out, tokens, 3);
                        bad += one<uint16_t, uint16_t>(experts, rank, width, out, tokens, 2);
                        if (rank == 9) bad += one<float, uint16_t>(experts, rank, width, out, tokens, 3);
                    }
    for (int64_t experts : {192, 193, 209})  // what tiles score
        for (int64_t width : {1, 31, 32, 33, 70})
            for (int64_t tokens : {31, 32, 47, 65}) bad += one<uint16_t, uint16_t>(experts, 16, width, 33, tokens, 2);
    for (int64_t experts : {16, 17, 40, 70})  // in float32, of more tokens
        for (int64_t width : {1, 31, 32, 33, 70})
            for (int64_t tokens : {128, 131}) {
                bad += one<uint16_t>(experts, 16, width, 33, tokens, 2);
                bad += one<uint16_t>(experts, 40, width, 130, tokens, 2);
            }
    return bad;
}

}  // namespace

// With an argument in teams alone.
int main(int count, char**) {
    int bad = 0;
    for (int i = 0; i < 4; ++i) {
        if (!supports((Isa)i)) continue;
        chosen_isa() = (Isa)i;
        bad += in_teams();
        if (count == 1) bad += all();
        std::thread other([] { one<float>(9, 4, 33, 20, 30, 2); });
        other.join();
    }
    printf("%d bad\n", bad);
    return bad != 0;
}
