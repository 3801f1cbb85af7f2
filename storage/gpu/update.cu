// One step of an update rule on distinct rows, from stamping the header to clamping the weights: what server/push.py's
// `_update_rows` does, in one launch. A row is worked on by as many lanes as it has quarters, up to a warp; a row of more
// than 128 floats takes several rounds. Sums over a row are made in the CPU's order, so the bits are the CPU's.
//
// What is compiled is an instance: UPDATE(name, rule, dim), which rules.py puts behind this source.
#include "optimizers.cuh"

const u8 TOUCHED = 2, DIRTY = 4, FRESH = 16;  // of `flags`, as storage/hot_kernels.py

struct Limits {
    double clip_norm;         // of a gradient; infinity: none
    float clip_value;         // of each element of it, before; infinity: none
    float weight_min, weight_max;  // infinite: none
    int unused;
};
static_assert(sizeof(Limits) == 24, "rules.py writes 24 bytes");

// total + x[0] + ... of lane 0, + ... of lane 1, and so on: one rounding after the other, as a loop over the row.
template <int LANES, class T>
DEVICE T add_in_order(const Lanes<LANES>& lanes, T total, const T (&x)[4]) {
    for (int lane = 0; lane < LANES; ++lane) total = lanes.from((((total + x[0]) + x[1]) + x[2]) + x[3], lane);
    return total;
}

// Sums of eight values in turn, brought together by halves: as the vectors of optimizers/rowloop.py. Lanes of even
// number have the first four sums, the others the last four.
template <int LANES>
struct Eights {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};

    // The next 4 * LANES values of a row.
    METHOD void add(const Lanes<LANES>& lanes, const float (&x)[4]) {
        for (int pair = 0; pair < LANES / 2; ++pair)
            for (int j = 0; j < 4; ++j) sums[j] = lanes.from(sums[j] + x[j], 2 * pair + lanes.lane % 2);
    }
    METHOD float total(const Lanes<LANES>& lanes) const {
        float both[4];
        for (int j = 0; j < 4; ++j) both[j] = LANES == 1 ? 0.0f : sums[j] + lanes.from(sums[j], lanes.lane ^ 1);
        return (both[0] + both[2]) + (both[1] + both[3]);
    }
};

template <class R, int DIM>
struct Row {
    static const int LANES = lanes_for(DIM), WIDE = 4 * LANES, ROUNDS = (DIM + WIDE - 1) / WIDE;
    static const bool ALIGNED = DIM % 4 == 0;
    typedef Piece<R::SLOTS> P;
    float* data;
    const float* grad;
    int lane;

    METHOD int column(int round) const { return round * WIDE + 4 * lane; }
    METHOD bool has(int round, int j) const { return column(round) + j < DIM; }

    METHOD void read(const float* from, int round, float (&to)[4]) const {
        if (ALIGNED) {
            const Four four = has(round, 0) ? read_four(from + column(round)) : Four{{0.0f, 0.0f, 0.0f, 0.0f}};
            for (int j = 0; j < 4; ++j) to[j] = four.v[j];
        } else {
            for (int j = 0; j < 4; ++j) to[j] = has(round, j) ? from[column(round) + j] : 0.0f;
        }
    }
    METHOD void write(float* to, int round, const float (&from)[4]) const {
        if (ALIGNED) {
            if (has(round, 0)) store_four(to + column(round), Four{{from[0], from[1], from[2], from[3]}});
        } else {
            for (int j = 0; j < 4; ++j)
                if (has(round, j)) to[column(round) + j] = from[j];
        }
    }

    METHOD void read_gradient(int round, const Limits& limits, float (&g)[4]) const {
        read(grad, round, g);
        const float limit = limits.clip_value;
        for (int j = 0; j < 4; ++j) g[j] = g[j] < -limit ? -limit : g[j] > limit ? limit : g[j];
    }
    METHOD void load(int round, P& p) const {
        read(data, round, p.w);
        for (int s = 0; s < R::SLOTS; ++s) read(data + (1 + s) * DIM, round, p.s[s]);
    }
    METHOD void save(int round, const P& p) const {
        write(data, round, p.w);
        for (int s = 0; s < R::SLOTS; ++s) write(data + (1 + s) * DIM, round, p.s[s]);
    }
    METHOD void bound(const Limits& limits, P& p) const {
        for (int j = 0; j < 4; ++j) p.w[j] = smaller(larger(p.w[j], limits.weight_min), limits.weight_max);
    }

    // What the gradient is multiplied by so that its norm is at most clip_norm.
    METHOD float clip(const Lanes<LANES>& lanes, const Limits& limits) const {
        if (limits.clip_norm > 1.7976931348623157e308) return 1.0f;
        double total = 0.0;
        for (int round = 0; round < ROUNDS; ++round) {
            float g[4];
            read_gradient(round, limits, g);
            double squares[4];
            for (int j = 0; j < 4; ++j) squares[j] = (double)g[j] * (double)g[j];
            total = add_in_order(lanes, total, squares);
        }
        const double norm = square_root(total);
        return norm > limits.clip_norm ? (float)(limits.clip_norm / norm) : 1.0f;
    }

    METHOD void update(R rule, const Lanes<LANES>& lanes, float lr, i64 step, const Limits& limits) const {
        const float scale = clip(lanes, limits);
        float* const single_at = data + (1 + R::SLOTS) * DIM;
        float single = R::SINGLES ? *single_at : 0.0f;
        lanes.wait();  // all have read it before one writes it
        const bool active = rule.begin(lr, step, single);
        const int whole = DIM / 8 * 8;  // the rest is added in order, and is of the last round
        Eights<LANES> eights;
        float total = 0.0f;
        P p;
        for (int round = 0; round < ROUNDS; ++round) {
            load(round, p);
            read_gradient(round, limits, p.g);
            for (int j = 0; j < 4; ++j) p.g[j] *= scale;
            float parts[4] = {0.0f, 0.0f, 0.0f, 0.0f}, rest[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int j = 0; j < 4; ++j) {
                if (!active || !has(round, j)) continue;
                const float part = rule.first(p, j);
                const bool in_order = R::SUM == IN_ORDER || column(round) + j >= whole;
                (in_order ? rest : parts)[j] = part;
            }
            if (R::SUM == BY_EIGHTS) {
                eights.add(lanes, parts);
                if (round == ROUNDS - 1) total = eights.total(lanes);
            }
            if (R::SUM == IN_ORDER || (R::SUM == BY_EIGHTS && whole < DIM && round == ROUNDS - 1))
                total = add_in_order(lanes, total, rest);
            if (R::SUM == NO_SUM) bound(limits, p);
            if (R::SUM == NO_SUM || ROUNDS > 1) save(round, p);
        }
        if (R::SUM != NO_SUM) {
            if (active) rule.middle(lr, total, DIM, single);
            for (int round = 0; round < ROUNDS; ++round) {
                if (ROUNDS > 1) {
                    load(round, p);
                    read_gradient(round, limits, p.g);
                    for (int j = 0; j < 4; ++j) p.g[j] *= scale;
                }
                for (int j = 0; j < 4; ++j)
                    if (active && has(round, j)) rule.second(p, j);
                bound(limits, p);
                save(round, p);
            }
        }
        if (R::SINGLES && lanes.lane == 0) *single_at = single;
    }
};

// rows: int32[n], distinct; grads: float32[n, DIM]; rates: float32[n], or null: `rate` for all. step: the global one, or
// -1: each row's own count. hyper: the rule's parameters.
#define UPDATE(NAME, RULE, DIM)                                                                                         \
    KERNEL NAME(const int* rows, i64 n, const float* grads, const float* rates, float rate, i64 step, i64 now_ms,       \
                i64 lsn, const double* hyper, const Limits* limits, i64* header, u8* flags, float* data, int stride) {  \
        typedef Row<RULE, DIM> R;                                                                                       \
        const i64 i = thread_number() / R::LANES;                                                                       \
        if (i >= n) return;                                                                                             \
        const Lanes<R::LANES> lanes;                                                                                    \
        const i64 at = rows[i];                                                                                         \
        const i64 count = header[4 * at + 2] + 1;                                                                       \
        lanes.wait();                                                                                                   \
        if (lanes.lane == 0) {                                                                                          \
            header[4 * at + 1] = now_ms;                                                                                \
            header[4 * at + 2] = count;                                                                                 \
            header[4 * at + 3] = lsn;                                                                                   \
            flags[at] = (u8)((flags[at] | DIRTY | TOUCHED) & ~FRESH);                                                   \
        }                                                                                                               \
        const R row = {data + at * stride, grads + i * DIM, lanes.lane};                                                \
        row.update(RULE(hyper), lanes, rates ? rates[i] : rate, step >= 0 ? step : count, *limits);                     \
    }
