// The whole lookup of a fused batch in one launch: probe, prune, fill, max_norm, combine; sequences copied.
//
// A bag is worked on by as many lanes as its rows have quarters (dim / 4, up to a warp). The lanes probe for as many keys
// at a time, one each, so that the misses of memory overlap; then all of them read row after row, 16 bytes a lane, four
// rows in flight. Sums are float32, in the order of the keys, so they are the same on every run.
#include "features.cuh"

DEVICE void store(const Feature& f, float* at, int column, const Four& value) {
    if ((f.bits & ALIGNED) && column + 4 <= f.dim) {
        store_four(at + column, value);
        return;
    }
    for (int j = 0; j < 4; ++j)
        if (column + j < f.dim) at[column + j] = value.v[j];
}

// What the lane's use is multiplied by, max_norm counted in.
template <int LANES>
DEVICE float scale_of(const Feature& f, const Lanes<LANES>& lanes, const Use& use, int n) {
    float scale = use.weight;
    if (!is_limited(f)) return scale;
    for (int k = 0; k < n; ++k) {  // all lanes together, row after row
        const int row = lanes.from(use.row, k);
        if (row == PRUNED) continue;
        const float limit = limit_of(f, square_of_norm(f, lanes, row));
        if (lanes.lane == k) scale *= limit;
    }
    return scale;
}

template <int LANES>
DEVICE void pool_bag(const Feature& f, i64 bag, Counts& counts) {
    const int AT_ONCE = LANES < 4 ? LANES : 4;
    const Lanes<LANES> lanes;
    i64 begin, end;
    int faults = 0;
    range_of(f, bag, begin, end, faults);
    for (int start = 0; start < f.dim; start += 4 * LANES) {  // once, for rows of 128 floats or less
        Counts seen = {0, 0, faults};
        const int column = start + 4 * lanes.lane;
        Four sum = {{0.0f, 0.0f, 0.0f, 0.0f}};
        float total = 0.0f;
        bool empty = true;
        for (i64 i = begin;; i += LANES) {
            Use use = {PRUNED, 1.0f};
            int n = 1;
            if (i < end) {
                use = use_at(f, i + lanes.lane, end, seen.faults);
                seen.absent += use.row == ABSENT;
                n = end - i < LANES ? (int)(end - i) : LANES;
            } else if (empty && (f.bits & DEFAULT_KEY)) {
                if (lanes.lane == 0) use.row = touched_row(f, f.default_key);
                seen.absent_defaults += use.row == ABSENT;
            } else {
                break;
            }
            const float scale = scale_of(f, lanes, use, n);
            for (int k = 0; k < n; k += AT_ONCE) {
                int row[AT_ONCE];
                Four value[AT_ONCE];
#pragma unroll
                for (int u = 0; u < AT_ONCE; ++u) {
                    row[u] = lanes.from(use.row, k + u);
                    value[u] = weights_of(f, row[u], column);
                }
#pragma unroll
                for (int u = 0; u < AT_ONCE; ++u) {
                    const float weight = lanes.from(use.weight, k + u), times = lanes.from(scale, k + u);
                    if (row[u] == PRUNED) continue;
                    empty = false;
                    total += share_of(f, weight);
#pragma unroll
                    for (int j = 0; j < 4; ++j) sum.v[j] += times * value[u].v[j];
                }
            }
        }
        if (!empty && f.combiner != SUM) {
            const float divisor = divisor_of(f, total);
            for (int j = 0; j < 4; ++j) sum.v[j] /= divisor;
        }
        store(f, f.values + bag * f.value_stride, column, sum);
        counts = seen;  // in each round the same
    }
}

// A sequence: as many keys at a time as there are lanes.
template <int LANES>
DEVICE void copy_rows(const Feature& f, i64 first, Counts& counts) {
    const Lanes<LANES> lanes;
    const Use use = use_at(f, first + lanes.lane, f.nnz, counts.faults);
    if (use.row == ABSENT) ++counts.absent;
    const int n = f.nnz - first < LANES ? (int)(f.nnz - first) : LANES;
    const float times = scale_of(f, lanes, use, n);
    for (int k = 0; k < n; ++k) {
        const int row = lanes.from(use.row, k);
        const float scale = lanes.from(times, k);
        for (int column = 4 * lanes.lane; column < f.dim; column += 4 * LANES) {
            Four value = weights_of(f, row, column);
            for (int j = 0; j < 4; ++j) value.v[j] *= scale;
            store(f, f.values + (first + k) * f.value_stride, column, value);
        }
    }
}

template <int LANES>
DEVICE void pool_block(const Feature& f, i64 block, Counts* counts) {
    const i64 unit = block * (THREADS / LANES) + thread_in_block() / LANES;
    Counts mine = {0, 0, 0};
    if (f.combiner == SEQUENCE) {
        if (unit * LANES >= f.nnz) return;
        copy_rows<LANES>(f, unit * LANES, mine);
    } else {
        if (unit >= f.bags) return;
        pool_bag<LANES>(f, unit, mine);
    }
    if (mine.absent) add_to(&counts->absent, mine.absent);
    if (mine.absent_defaults) add_to(&counts->absent_defaults, mine.absent_defaults);
    if (mine.faults) set_bits(&counts->faults, mine.faults);
}

// features: [count]; counts: [count], zero before.
KERNEL CROWDED pool(const Feature* features, int count, Counts* counts) {
    const int at = feature_of(features, count, block_number());
    const Feature f = features[at];
    const i64 block = block_number() - f.first_block;
#define POOL(LANES) pool_block<LANES>(f, block, counts + at)
    WITH_LANES(lanes_for(f.dim), POOL)
#undef POOL
}

// marks[i] = 1 where the key at position i of a feature is wanted and has no row. One thread per key.
KERNEL mark_absent(const Feature* features, int at, int* marks) {
    const Feature f = features[at];
    const i64 i = thread_number();
    int faults = 0;
    if (i < f.nnz) marks[i] = use_at(f, i, f.nnz, faults).row == ABSENT;
}

// Looks at the offsets of a feature that `pool` and `place_uses` do not read: a sequence's, and one that stands alone.
// One thread per offset.
KERNEL check_offsets(const Feature* features, int at, Counts* counts) {
    const Feature f = features[at];
    const i64 i = thread_number();
    if (i > f.bags) return;
    const i64 offset = f.offsets[i];
    if (i == 0 ? offset != 0 : offset < f.offsets[i - 1]) set_bits(&counts[at].faults, WRONG);
    if (i == f.bags && offset != f.nnz) set_bits(&counts[at].faults, WRONG);
}
