// The first weights of a row, a pure function of (seed, group, key): optimizers/random_values.py, operation by operation.
// All of it is + - * / and sqrt in double, so the bits are those of the CPU as long as nothing is contracted (--fmad=false).
#pragma once
#include "index.cuh"

enum Kind { CONSTANT = 0, UNIFORM = 1, NORMAL = 2 };

// How the rows of a group start. UNIFORM: first + second * u. NORMAL: first + second * quantile(below + (1 - 2 below) u).
struct Recipe {
    u64 seed;
    double first, second, below;
    int kind, group;
};

const u64 GAMMA = 0x9E3779B97F4A7C15ull;

DEVICE u64 stream_of(const Recipe& r) { return mix64(mix64(r.seed + GAMMA) + (u64)(r.group + 1) * GAMMA); }

// u[j] from the word that holds it and its neighbour: the upper half for an even j, the lower for an odd one.
DEVICE double unit(u64 word, int j) {
    const u64 half = (j & 1) ? (word & 0xFFFFFFFFull) : (word >> 32);
    return ((double)half + 0.5) * (1.0 / 4294967296.0);
}

DEVICE double central(double r) {
    double top = 2.5090809287301226727e3;
    top = top * r + 3.3430575583588128105e4;
    top = top * r + 6.7265770927008700853e4;
    top = top * r + 4.5921953931549871457e4;
    top = top * r + 1.3731693765509461125e4;
    top = top * r + 1.9715909503065514427e3;
    top = top * r + 1.3314166789178437745e2;
    top = top * r + 3.3871328727963666080e0;
    double bottom = 5.2264952788528545610e3;
    bottom = bottom * r + 2.8729085735721942674e4;
    bottom = bottom * r + 3.9307895800092710610e4;
    bottom = bottom * r + 2.1213794301586595867e4;
    bottom = bottom * r + 5.3941960214247511077e3;
    bottom = bottom * r + 6.8718700749205790830e2;
    bottom = bottom * r + 4.2313330701600911252e1;
    return top / (bottom * r + 1.0);
}

DEVICE double tail(double r) {
    double top = 7.74545014278341407640e-4;
    top = top * r + 2.27238449892691845833e-2;
    top = top * r + 2.41780725177450611770e-1;
    top = top * r + 1.27045825245236838258e0;
    top = top * r + 3.64784832476320460504e0;
    top = top * r + 5.76949722146069140550e0;
    top = top * r + 4.63033784615654529590e0;
    top = top * r + 1.42343711074968357734e0;
    double bottom = 1.05075007164441684324e-9;
    bottom = bottom * r + 5.47593808499534494600e-4;
    bottom = bottom * r + 1.51986665636164571966e-2;
    bottom = bottom * r + 1.48103976427480074590e-1;
    bottom = bottom * r + 6.89767334985100004550e-1;
    bottom = bottom * r + 1.67638483018380384940e0;
    bottom = bottom * r + 2.05319162663775882187e0;
    return top / (bottom * r + 1.0);
}

DEVICE double logarithm(double x) {
    int exponent = 0;
    double m = x;
    while (m < 0.7071067811865476) {
        m *= 2.0;
        exponent -= 1;
    }
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double series = 1.0 / 21.0;
    series = series * z + 1.0 / 19.0;
    series = series * z + 1.0 / 17.0;
    series = series * z + 1.0 / 15.0;
    series = series * z + 1.0 / 13.0;
    series = series * z + 1.0 / 11.0;
    series = series * z + 1.0 / 9.0;
    series = series * z + 1.0 / 7.0;
    series = series * z + 1.0 / 5.0;
    series = series * z + 1.0 / 3.0;
    series = series * z + 1.0;
    return exponent * 0.6931471805599453 + 2.0 * s * series;
}

// The normal quantile: Wichura 1988, algorithm AS 241 (PPND16), without its branch for tails beyond exp(-25).
DEVICE double quantile(double p) {
    const double q = p - 0.5;
    if ((q < 0.0 ? -q : q) <= 0.425) return q * central(0.180625 - q * q);
    const double r = square_root(-logarithm(q < 0.0 ? p : 1.0 - p)) - 1.6;
    return q < 0.0 ? -tail(r) : tail(r);
}

DEVICE float initial_value(const Recipe& r, u64 word, int j) {
    if (r.kind == CONSTANT) return (float)r.first;
    if (r.kind == UNIFORM) return (float)(r.first + r.second * unit(word, j));
    return (float)(r.first + r.second * quantile(r.below + (1.0 - 2.0 * r.below) * unit(word, j)));
}

// The initial values 2 * pair and, if there is one, 2 * pair + 1 of a row of `dim` weights.
DEVICE void initial_pair(const Recipe& r, i64 key, int pair, int dim, float* row) {
    const u64 word = mix64(mix64(stream_of(r) ^ (u64)key) + (u64)(pair + 1) * GAMMA);
    for (int j = 2 * pair; j < dim && j < 2 * pair + 2; ++j) row[j] = initial_value(r, word, j);
}
