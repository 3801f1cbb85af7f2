// Neighbouring lanes of a warp that work on one row, and small things that every source needs.
#pragma once
#include "warp.cuh"

// Lanes for a row of `dim` floats: 4 each, a power of two, a warp at most.
DEVICE constexpr int lanes_for(int dim) {
    return dim <= 4 ? 1 : dim <= 8 ? 2 : dim <= 16 ? 4 : dim <= 32 ? 8 : dim <= 64 ? 16 : 32;
}

// Calls one of the instances CALL(1), CALL(2), ... CALL(32) of a template.
#define WITH_LANES(LANES, CALL)   \
    switch (LANES) {              \
        case 1: CALL(1); break;   \
        case 2: CALL(2); break;   \
        case 4: CALL(4); break;   \
        case 8: CALL(8); break;   \
        case 16: CALL(16); break; \
        default: CALL(32); break; \
    }

// WIDTH lanes (a power of two) that work on one thing. All of them have to make each call.
template <int WIDTH>
struct Lanes {
    int lane;   // 0..WIDTH-1
    int first;  // where they begin in the warp
    u32 mask;

    METHOD Lanes() {
        lane = thread_in_block() % WIDTH;
        first = thread_in_block() % 32 - lane;
        mask = (WIDTH == 32 ? 0xFFFFFFFFu : (1u << (WIDTH % 32)) - 1u) << first;
    }

    // What lane `source` of these has.
    template <class T>
    METHOD T from(T value, int source) const {
        return WIDTH == 1 ? value : value_of_lane(mask, value, first + source);
    }

    // The sum over the lanes: pairs at distance WIDTH / 2, then at half of that. The same bits in all lanes, on every run.
    METHOD double sum(double value) const {
        for (int distance = WIDTH / 2; distance > 0; distance /= 2) value += from(value, lane ^ distance);
        return value;
    }

    // Reads before it come before writes after it, of all the lanes.
    METHOD void wait() const {
        if (WIDTH > 1) wait_for_lanes(mask);
    }
};

// The last i in 0..count-1 with at(i) <= value, of values that rise; 0 if there is none.
template <class At>
DEVICE int last_at_most(int count, i64 value, At at) {
    int low = 0, high = count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (at(middle) <= value)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

DEVICE float square_root(float x) { return sqrtf(x); }
DEVICE double square_root(double x) { return sqrt(x); }
DEVICE bool is_finite(float x) { return x - x == 0.0f; }
