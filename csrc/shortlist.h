// The 8-bit copy of a router's rows that makes shortlists, with what bounds its error.
#pragma once
#include <cmath>

#include "site.h"

namespace glider {

// Lengths that bounds of scores are made of: float32 loses the squares of small values, and what is large may overflow.
constexpr float LEAST_LENGTH = 1e-12f, MOST_LENGTH = 1e12f;

// False, and no codes, if a row is not finite or too long, or memory is short.
inline bool make_codes(Site& site) {
    int64_t count = site.experts, width = site.width;
    site.codes = static_cast<int8_t*>(malloc(count * width));
    site.step = static_cast<float*>(malloc(count * sizeof(float)));
    site.residual = static_cast<float*>(malloc(count * sizeof(float)));
    site.length = static_cast<float*>(malloc(count * sizeof(float)));
    bool good = site.codes && site.step && site.residual && site.length;
    for (int64_t e = 0; good && e < count; ++e) {
        const float* row = site.rows + e * width;
        float most = 0;
        for (int64_t d = 0; d < width; ++d) {
            good &= std::isfinite(row[d]);
            most = fabsf(row[d]) > most ? fabsf(row[d]) : most;
        }
        float step = most / 127;
        double squares = 0, rests = 0;
        for (int64_t d = 0; good && d < width; ++d) {
            float code = step > 0 ? nearbyintf(row[d] / step) : 0;
            code = code > 127 ? 127 : code < -127 ? -127 : code;
            site.codes[e * width + d] = (int8_t)code;
            double rest = (double)row[d] - (double)code * step;
            rests += rest * rest;
            squares += (double)row[d] * row[d];
        }
        site.step[e] = step;
        site.residual[e] = (float)(sqrt(rests) * 1.0001);
        float length = (float)sqrt(squares);
        good &= length < MOST_LENGTH;
        site.length[e] = length > LEAST_LENGTH ? length : LEAST_LENGTH;
        site.longest = site.length[e] > site.longest ? site.length[e] : site.longest;
    }
    if (good) return true;
    free(site.codes), free(site.step), free(site.residual), free(site.length);
    site.codes = nullptr, site.step = site.residual = site.length = nullptr;
    return false;
}

}  // namespace glider
