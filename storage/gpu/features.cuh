// The table of a fused batch: one entry per feature, made by fused.py, and what pooling and its gradient share.
#pragma once
#include "index.cuh"

enum Combiner { SUM = 0, MEAN = 1, SQRTN = 2, SEQUENCE = 3 };
enum Bit { NEGATIVE_KEYS = 1, DEFAULT_KEY = 2, PADDING_KEY = 4, ALIGNED = 8 };
// WRONG: offsets that lead nowhere, weights that are not finite. FAR: positive weights that a bag's others, and their
// squares, cannot be added to in float32, where the combiner divides by that sum.
enum Fault { WRONG = 1, FAR = 2 };

struct Feature {
    const Entry* index;
    i64 index_size;
    const float* data;
    u8* flags;
    const i64* keys;     // [nnz]
    const i64* offsets;  // [bags + 1]; not read for a sequence
    const float* weights;  // [nnz], or null: 1 each
    float* values;       // the feature's columns of the first sample, or its sequence: the result, or its gradient
    i64 value_stride;    // floats from a sample (a sequence's key) to the next
    i64 nnz, bags;
    i64 default_key, padding_key;
    i64 first_block;     // of the launch: the blocks of a feature follow those of the one before
    i64 first_position;  // of its uses among those of all features (backward)
    i64 first_id;        // of its table's rows among those of all tables (backward)
    int dim, stride;     // of the table's rows, in floats
    int combiner, bits;
    float max_norm;      // 0: no limit
    float absent;        // each weight of a key that has no row
    int touch;           // bits put on the flags of rows found
    int unused;
};
static_assert(sizeof(Feature) == 160, "fused.py writes 160 bytes");

const int PRUNED = -2, ABSENT = -1;  // instead of a row

// What happened to a feature's keys.
struct Counts {
    int absent;           // uses of keys without a row
    int absent_defaults;  // empty bags whose default key has no row
    int faults;           // bits of Fault
};

struct Use {
    int row;  // or PRUNED, ABSENT
    float weight;
};

// The feature that a block works on.
DEVICE int feature_of(const Feature* features, int count, i64 block) {
    return last_at_most(count, block, [=](int i) { return features[i].first_block; });
}

DEVICE bool is_kept(const Feature& f, i64 key, float weight) {
    if (key < 0 && !(f.bits & NEGATIVE_KEYS)) return false;
    if ((f.bits & PADDING_KEY) && key == f.padding_key) return false;
    return f.combiner == SUM || f.combiner == SEQUENCE || weight > 0.0f;
}

DEVICE int touched_row(const Feature& f, i64 key) {
    const int row = find_row(f.index, f.index_size, key);
    if (row >= 0 && (f.flags[row] & f.touch) != f.touch) f.flags[row] |= (u8)f.touch;
    return row;
}

// Whether device_calls.py would bring the weight of a key that is kept nearer to 1.
DEVICE bool is_far(const Feature& f, float weight) {
    return (f.combiner == MEAN || f.combiner == SQRTN) && !(weight > 1e-15f && weight < 1e15f);
}

// The use at position i; PRUNED from `end` on.
DEVICE Use use_at(const Feature& f, i64 i, i64 end, int& faults) {
    if (i >= end) return Use{PRUNED, 0.0f};
    const i64 key = f.keys[i];
    const float weight = f.weights ? f.weights[i] : 1.0f;
    if (!is_finite(weight)) faults |= WRONG;
    if (!is_kept(f, key, weight)) return Use{PRUNED, 0.0f};
    if (is_far(f, weight)) faults |= FAR;
    return Use{touched_row(f, key), weight};
}

// Where a bag's keys begin and end, kept within the keys there are whatever the offsets say.
DEVICE void range_of(const Feature& f, i64 bag, i64& begin, i64& end, int& faults) {
    begin = f.offsets[bag];
    end = f.offsets[bag + 1];
    if (begin < 0 || end < begin || end > f.nnz || (bag == 0 && begin != 0) || (bag == f.bags - 1 && end != f.nnz)) {
        faults |= WRONG;
        begin = begin < 0 ? 0 : begin > f.nnz ? f.nnz : begin;
        end = end < begin ? begin : end > f.nnz ? f.nnz : end;
    }
}

// What a use counts in the divisor of its bag.
DEVICE float share_of(const Feature& f, float weight) { return f.combiner == SQRTN ? weight * weight : weight; }

// The divisor of a bag, from the sum of its shares.
DEVICE float divisor_of(const Feature& f, float total) {
    return f.combiner == MEAN ? total : f.combiner == SQRTN ? square_root(total) : 1.0f;
}

DEVICE float weight_of(const Feature& f, int row, int column) {
    return row >= 0 ? f.data[(i64)row * f.stride + column] : f.absent;
}

// Four weights of a row (ABSENT: of a key without one; PRUNED: zeros) from `column` on; those beyond dim mean nothing.
DEVICE Four weights_of(const Feature& f, int row, int column) {
    // always a load, of row 0 for want of a better one: loads behind branches would wait for each other
    const bool there = row >= 0 && column < f.dim;
    Four four = load_four(f.data + (there ? (i64)row * f.stride + column : 0));
    const float value = row == ABSENT ? f.absent : 0.0f;
    for (int j = 0; j < 4; ++j) four.v[j] = there ? four.v[j] : value;
    return four;
}

template <int LANES>
DEVICE double square_of_norm(const Feature& f, const Lanes<LANES>& lanes, int row) {
    double square = 0.0;
    for (int column = 4 * lanes.lane; column < f.dim; column += 4 * LANES)
        for (int j = column; j < f.dim && j < column + 4; ++j) {
            const double w = weight_of(f, row, j);
            square += w * w;
        }
    return lanes.sum(square);
}

// What the weights of a row are multiplied by so that their norm is at most max_norm.
DEVICE float limit_of(const Feature& f, double square) {
    const double norm = square_root(square);
    return norm > (double)f.max_norm ? (float)((double)f.max_norm / norm) : 1.0f;
}

DEVICE bool is_limited(const Feature& f) { return f.max_norm > 0.0f; }
