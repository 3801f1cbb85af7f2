// From the gradients of a fused batch's results to one gradient per row, for all tables together, the same on every run.
//
// Every place where a row was used has a position: those of a feature follow those of the one before; within a feature
// they are in the order of the keys, a bag's default key before the keys of the next bag. `place_uses` writes for each
// position the row's id (its number plus those of the tables before: 32 bits) and where its gradient lies. A stable sort
// by id then brings the uses of a row together in ascending position; they are summed in float32 in that order.
// A row with many uses is summed in pieces of PIECE uses, counted from its first, and the pieces in their order: how a
// row's gradient is rounded depends on its own uses alone.
#include "features.cuh"

const u32 NONE = 0xFFFFFFFFu;  // the id of a position without a row
const int PIECE = 512;

struct alignas(16) Spot {
    int feature;
    int sample;    // of the gradient: its bag, or the key of a sequence
    float weight;  // what the gradient is multiplied by
    int unused;
};

template <int LANES>
DEVICE void place_bag(const Feature& f, int at, i64 bag, u32* ids, Spot* spots, Counts& counts) {
    const Lanes<LANES> lanes;
    i64 begin, end;
    int faults = 0;
    range_of(f, bag, begin, end, faults);
    counts.faults |= faults;
    const bool filled = f.bits & DEFAULT_KEY;
    const i64 first = f.first_position + (filled ? bag + 1 : 0);  // + i: the position of key i
    float total = 0.0f;
    bool empty = true;
    for (i64 i = begin; i < end; i += LANES) {
        const Use use = use_at(f, i + lanes.lane, end, counts.faults);
        if (use.row == ABSENT) ++counts.absent;
        if (i + lanes.lane < end) {
            ids[first + i + lanes.lane] = use.row < 0 ? NONE : (u32)(f.first_id + use.row);
            spots[first + i + lanes.lane] = Spot{at, (int)bag, use.weight, 0};
        }
        const int n = end - i < LANES ? (int)(end - i) : LANES;
        for (int k = 0; k < n; ++k) {
            if (lanes.from(use.row, k) == PRUNED) continue;
            empty = false;
            total += share_of(f, lanes.from(use.weight, k));
        }
    }
    if (f.combiner != SUM) {
        const float divisor = divisor_of(f, total);
        for (i64 i = begin + lanes.lane; i < end; i += LANES) spots[first + i].weight /= divisor;
    }
    if (filled && lanes.lane == 0) {
        const int row = empty ? touched_row(f, f.default_key) : PRUNED;
        if (row == ABSENT) ++counts.absent_defaults;
        ids[first - 1 + begin] = row < 0 ? NONE : (u32)(f.first_id + row);
        spots[first - 1 + begin] = Spot{at, (int)bag, 1.0f, 0};
    }
}

template <int LANES>
DEVICE void place_block(const Feature& f, int at, i64 block, u32* ids, Spot* spots, Counts* counts) {
    const i64 unit = block * (THREADS / LANES) + thread_in_block() / LANES;
    Counts mine = {0, 0, 0};
    if (f.combiner == SEQUENCE) {
        const i64 i = unit * LANES + thread_in_block() % LANES;
        const Use use = use_at(f, i, f.nnz, mine.faults);
        if (i < f.nnz) {
            ids[f.first_position + i] = use.row < 0 ? NONE : (u32)(f.first_id + use.row);
            spots[f.first_position + i] = Spot{at, (int)i, 1.0f, 0};
        }
        mine.absent = use.row == ABSENT;
    } else if (unit < f.bags) {
        place_bag<LANES>(f, at, unit, ids, spots, mine);
    }
    if (mine.absent) add_to(&counts->absent, mine.absent);
    if (mine.absent_defaults) add_to(&counts->absent_defaults, mine.absent_defaults);
    if (mine.faults) set_bits(&counts->faults, mine.faults);
}

// Blocks as those of `pool`. A row of a key that is absent gets no gradient. counts: [count], zero before.
KERNEL place_uses(const Feature* features, int count, u32* ids, Spot* spots, Counts* counts) {
    const int at = feature_of(features, count, block_number());
    const Feature f = features[at];
    const i64 block = block_number() - f.first_block;
#define PLACE(LANES) place_block<LANES>(f, at, block, ids, spots, counts + at)
    WITH_LANES(lanes_for(f.dim), PLACE)
#undef PLACE
}

// --- segments: the uses of one row, neighbours once sorted ---

// sorted[i] = the id at sorted place i; heads[i] = 1 where a segment begins. order: int64[n], the stable sort of ids.
KERNEL mark_heads(const u32* ids, const i64* order, i64 n, u32* sorted, int* heads) {
    const i64 i = thread_number();
    if (i >= n) return;
    const u32 id = ids[order[i]];
    sorted[i] = id;
    heads[i] = id != NONE && (i == 0 || id != ids[order[i - 1]]);
}

// The table of an id, `tables` for NONE. first_id: [tables], rising, from 0.
DEVICE int table_of(u32 id, const i64* first_id, int tables) {
    if (id == NONE) return tables;
    return last_at_most(tables, (i64)id, [=](int t) { return first_id[t]; });
}

// starts[s] = where segment s begins, and one more where the last ends; first_segment[t] = of table t's rows, [tables] =
// how many there are. number: running sum of heads. n > 0.
KERNEL find_segments(const u32* sorted, const int* number, i64 n, const i64* first_id, int tables, int* starts,
                     int* first_segment) {
    const i64 i = thread_number();
    if (i >= n) return;
    const u32 id = sorted[i], before = i == 0 ? NONE : sorted[i - 1];
    if (id != NONE && (i == 0 || id != before)) starts[number[i] - 1] = (int)i;
    if (id != NONE && (i == n - 1 || sorted[i + 1] == NONE)) starts[number[i]] = (int)i + 1;
    const int segments_before = number[i] - (id != NONE && (i == 0 || id != before));
    const int here = table_of(id, first_id, tables);
    for (int t = i == 0 ? 0 : table_of(before, first_id, tables) + 1; t <= here; ++t) first_segment[t] = segments_before;
    if (i == n - 1)
        for (int t = here + 1; t <= tables; ++t) first_segment[t] = number[i];
}

// extra[s] = how many pieces segment s has besides the first. One thread per sorted place; there are fewer segments.
KERNEL count_extra(const int* starts, const int* segments, i64 n, int* extra) {
    const i64 s = thread_number();
    if (s >= n) return;
    extra[s] = s < *segments ? (starts[s + 1] - starts[s] - 1) / PIECE : 0;
}

// segment_of[e] = the segment of extra piece e. last: running sum of extra.
KERNEL find_extra(const int* extra, const int* last, i64 segments, int* segment_of) {
    const i64 s = thread_number();
    if (s >= segments) return;
    for (int e = last[s] - extra[s]; e < last[s]; ++e) segment_of[e] = (int)s;
}

// --- sums ---

// One table's part of the segments, made by fused.py.
struct Share {
    const float* data;
    float* sums;    // [segments, dim]
    i64 first_id, first_segment, segments, first_block;
    int dim, stride;
};
static_assert(sizeof(Share) == 56, "fused.py writes 56 bytes");

// A row e longer than max_norm was used as s e with s = max_norm / |e|; the gradient g of that is s (g - e (e.g) / |e|^2)
// of e. scale = s, back = (e.g) / |e|^2; scale = -1 for a row that is not longer. g is times * gradient.
template <int LANES>
DEVICE void pull_back(const Lanes<LANES>& lanes, const float* row, const float* gradient, float times, int dim,
                      float max_norm, float& scale, float& back) {
    double dot = 0.0, square = 0.0;
    for (int column = 4 * lanes.lane; column < dim; column += 4 * LANES)
        for (int j = column; j < dim && j < column + 4; ++j) {
            const double e = row[j];
            square += e * e;
            dot += e * (double)(times * gradient[j]);
        }
    square = lanes.sum(square);
    dot = lanes.sum(dot);
    const double norm = square_root(square);
    const bool longer = norm > (double)max_norm;
    scale = longer ? (float)((double)max_norm / norm) : -1.0f;
    back = longer ? (float)(dot / square) : 0.0f;
}

// out = the sum of the gradients at the sorted places from..to-1, all uses of one row. aligned: whether the gradients of
// all features are (bit ALIGNED).
template <int LANES>
DEVICE void sum_uses(const Feature* features, int aligned, const Spot* spots, const i64* order, i64 from, i64 to,
                     const float* row, int dim, float* out) {
    const int AT_ONCE = LANES < 4 ? LANES : 4;
    const Lanes<LANES> lanes;
    for (int start = 0; start < dim; start += 4 * LANES) {
        const int column = start + 4 * lanes.lane;
        const int width = column >= dim ? 0 : dim - column < 4 ? dim - column : 4;
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (i64 i = from; i < to; i += LANES) {
            // one use a lane: where its gradient begins, what it is multiplied by
            u64 gradient = 0;
            float weight = 0.0f, max_norm = 0.0f, scale = -1.0f, back = 0.0f;
            if (i + lanes.lane < to) {
                const Spot spot = spots[order[i + lanes.lane]];
                const Feature& f = features[spot.feature];
                gradient = (u64)(f.values + spot.sample * f.value_stride);
                weight = spot.weight;
                max_norm = f.max_norm;
            }
            const int n = to - i < LANES ? (int)(to - i) : LANES;
            for (int k = 0; k < n; ++k) {  // all lanes together, use after use
                const float limit = lanes.from(max_norm, k);
                if (limit == 0.0f) continue;
                const float* at = (const float*)lanes.from(gradient, k);
                const float times = lanes.from(weight, k);
                float its_scale, its_back;
                pull_back(lanes, row, at, times, dim, limit, its_scale, its_back);
                if (lanes.lane == k) scale = its_scale, back = its_back;
            }
            for (int k = 0; k < n; k += AT_ONCE) {
                Four value[AT_ONCE];
#pragma unroll
                for (int u = 0; u < AT_ONCE; ++u) {
                    // always a load, of something that is there: loads behind branches would wait for each other
                    const float* at = (const float*)lanes.from(gradient, k + u < n ? k + u : k);
                    if (aligned) {
                        value[u] = load_four(at + (width ? column : 0));
                    } else {
                        for (int j = 0; j < 4; ++j) value[u].v[j] = at[j < width ? column + j : 0];
                    }
                }
#pragma unroll
                for (int u = 0; u < AT_ONCE; ++u) {
                    const float times = lanes.from(weight, k + u), its_scale = lanes.from(scale, k + u);
                    const float its_back = lanes.from(back, k + u);
                    if (k + u >= n) continue;
                    for (int j = 0; j < 4; ++j) {
                        float g = times * value[u].v[j];
                        if (its_scale >= 0.0f && j < width) g = its_scale * (g - row[column + j] * its_back);
                        sum[j] += g;
                    }
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < width) out[column + j] = sum[j];
    }
}

template <int LANES>
DEVICE void sum_block(const Feature* features, int aligned, const Share& share, const Spot* spots, const i64* order,
                      const u32* sorted, const int* starts, i64 block) {
    const i64 s = block * (THREADS / LANES) + thread_in_block() / LANES;
    if (s >= share.segments) return;
    const i64 from = starts[share.first_segment + s];
    i64 to = starts[share.first_segment + s + 1];
    if (to > from + PIECE) to = from + PIECE;
    const float* row = share.data + ((i64)sorted[from] - share.first_id) * share.stride;
    sum_uses<LANES>(features, aligned, spots, order, from, to, row, share.dim, share.sums + s * share.dim);
}

// The first piece of every segment, straight into the sums.
KERNEL CROWDED sum_segments(const Feature* features, int aligned, const Share* shares, int tables, const Spot* spots,
                            const i64* order, const u32* sorted, const int* starts) {
    const int t = last_at_most(tables, block_number(), [=](int i) { return shares[i].first_block; });
    const Share share = shares[t];
    const i64 block = block_number() - share.first_block;
#define SUM_ROWS(LANES) sum_block<LANES>(features, aligned, share, spots, order, sorted, starts, block)
    WITH_LANES(lanes_for(share.dim), SUM_ROWS)
#undef SUM_ROWS
}

DEVICE int share_of_segment(const Share* shares, int tables, i64 s) {
    return last_at_most(tables, s, [=](int t) { return shares[t].first_segment; });
}

// The pieces after the first, a warp each: partial[e] = the sum of extra piece e; float32[extra pieces, widest dim].
KERNEL CROWDED sum_extra(const Feature* features, int aligned, const Share* shares, int tables, const Spot* spots,
                         const i64* order, const u32* sorted, const int* starts, const int* extra, const int* last,
                         const int* segment_of, i64 pieces, int widest, float* partial) {
    const i64 e = thread_number() / 32;
    if (e >= pieces) return;
    const i64 s = segment_of[e];
    const Share share = shares[share_of_segment(shares, tables, s)];
    const i64 from = starts[s] + (i64)PIECE * (e - (last[s] - extra[s]) + 1);
    const i64 to = starts[s + 1] < from + PIECE ? starts[s + 1] : from + PIECE;
    const float* row = share.data + ((i64)sorted[from] - share.first_id) * share.stride;
    sum_uses<32>(features, aligned, spots, order, from, to, row, share.dim, partial + e * widest);
}

// Add the pieces of each segment to its first, in their order; a warp per piece, of which those of first pieces work.
KERNEL add_extra(const Share* shares, int tables, const int* extra, const int* last, const int* segment_of, i64 pieces,
                 int widest, const float* partial) {
    const i64 e = thread_number() / 32;
    if (e >= pieces) return;
    const i64 s = segment_of[e];
    if (e != last[s] - extra[s]) return;
    const Share share = shares[share_of_segment(shares, tables, s)];
    float* sums = share.sums + (s - share.first_segment) * share.dim;
    for (int j = (int)(thread_number() % 32); j < share.dim; j += 32) {
        float sum = sums[j];
        for (i64 piece = e; piece < last[s]; ++piece) sum += partial[piece * widest + j];
        sums[j] = sum;
    }
}

// rows[s] = the row of segment s within its table.
KERNEL copy_rows_of(const Share* shares, int tables, const u32* sorted, const int* starts, i64 segments, int* rows) {
    const i64 s = thread_number();
    if (s >= segments) return;
    rows[s] = (int)((i64)sorted[starts[s]] - shares[share_of_segment(shares, tables, s)].first_id);
}
