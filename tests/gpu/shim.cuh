// Takes the place of storage/gpu/warp.cuh, so that the kernels' own source runs on a CPU, under tests alone.
//
// Every GPU thread is a fiber. A fiber runs until it exchanges a value with its lanes, and may stop at each atomic and at
// each read that another thread's write can overtake; which one goes on is drawn from a seeded generator. So a test sees
// another interleaving with each seed, and the same one again with the same seed. A deadlock ends the launch with an error.
#pragma once
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned char u8;

#define KERNEL extern "C" void
#define CROWDED
#define DEVICE static inline
#define METHOD inline

namespace shim {

const int BLOCK_THREADS = 256, BLOCKS_AT_ONCE = 4, FIBERS = BLOCK_THREADS * BLOCKS_AT_ONCE, STACK_BYTES = 64 << 10;

// Lanes that exchange values are known by the lowest of them.
struct Warp {
    u64 slot[2][32];
    int turn[32], arrived[32], waiting[32][32];
};

struct Fiber {
    ucontext_t context;
    i64 block;
    int thread;
    Warp* warp;
};

static Fiber fibers[FIBERS];
static Warp warps[FIBERS / 32];
static char* stacks;
static int ready[FIBERS], ready_count;
static int ended[BLOCKS_AT_ONCE];  // how many threads of each running block have
static ucontext_t scheduler;
static int current;
static u64 random_state;
static bool misaligned;
static void (*body)(void**);
static void** arguments;

static inline Fiber& here() { return fibers[current]; }

static inline u32 draw(u32 below) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)((random_state >> 33) % below);
}

static inline void make_ready(int fiber) { ready[ready_count++] = fiber; }
static inline void stop() { swapcontext(&here().context, &scheduler); }

static inline void maybe_stop() {
    if (draw(4)) return;
    make_ready(current);
    stop();
}

static inline u64 exchange(u32 mask, u64 value, int source) {
    Warp& warp = *here().warp;
    const int low = __builtin_ctz(mask), turn = warp.turn[low];
    warp.slot[turn & 1][here().thread % 32] = value;
    if (warp.arrived[low] + 1 == __builtin_popcount(mask)) {
        for (int i = 0; i < warp.arrived[low]; ++i) make_ready(warp.waiting[low][i]);
        warp.arrived[low] = 0;
        ++warp.turn[low];
    } else {
        warp.waiting[low][warp.arrived[low]++] = current;
        stop();
    }
    return warp.slot[turn & 1][source];
}

static void run_fiber() {
    body(arguments);
    ++ended[current / BLOCK_THREADS];
    stop();
}

static void start_block(int place, i64 block) {
    for (int t = 0; t < BLOCK_THREADS; ++t) {
        const int at = place * BLOCK_THREADS + t;
        Fiber& fiber = fibers[at];
        fiber.block = block;
        fiber.thread = t;
        fiber.warp = &warps[at / 32];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks + (size_t)at * STACK_BYTES;
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = 0;
        makecontext(&fiber.context, run_fiber, 0);
        make_ready(at);
    }
    ended[place] = 0;
}

// 0; 1 where threads wait for lanes that will not come; 2 where 16 bytes were taken at an address that is no multiple of 16.
static int launch(void (*kernel)(void**), void** args, i64 blocks, u64 seed) {
    if (!stacks)
        stacks = (char*)mmap(0, (size_t)FIBERS * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(warps, 0, sizeof warps);
    ready_count = 0;
    random_state = seed * 2 + 1;
    misaligned = false;
    body = kernel;
    arguments = args;
    i64 next = 0, running = 0;
    for (int place = 0; place < BLOCKS_AT_ONCE && next < blocks; ++place, ++running) start_block(place, next++);
    while (running) {
        if (!ready_count) return 1;
        const u32 which = draw(ready_count);
        current = ready[which];
        ready[which] = ready[--ready_count];
        swapcontext(&scheduler, &here().context);
        const int place = current / BLOCK_THREADS;
        if (ended[place] == BLOCK_THREADS) {
            ended[place] = 0;
            if (next < blocks)
                start_block(place, next++);
            else
                --running;
        }
    }
    return misaligned ? 2 : 0;
}

template <class... A>
struct Call {
    Call(void (*kernel)(A...), A... a) { kernel(a...); }
};
template <class... A>
static void call(void (*kernel)(A...), void** args) {
    int i = 0;
    Call<A...>{kernel, *(A*)args[i++]...};  // in braces the arguments are read from the first to the last
}

}  // namespace shim

// What Python calls, for a kernel of that name.
#define HOST_LAUNCH(NAME)                                                             \
    extern "C" int launch_##NAME(void** args, i64 blocks, u64 seed) {                 \
        return shim::launch([](void** a) { shim::call(NAME, a); }, args, blocks, seed); \
    }

// --- the names of warp.cuh ---

const int THREADS = shim::BLOCK_THREADS;

DEVICE i64 thread_number() { return shim::here().block * THREADS + shim::here().thread; }
DEVICE int thread_in_block() { return shim::here().thread; }
DEVICE i64 block_number() { return shim::here().block; }

template <class T>
DEVICE T value_of_lane(u32 mask, T value, int source) {
    u64 bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shim::exchange(mask, bits, source);
    memcpy(&value, &bits, sizeof value);
    return value;
}

DEVICE void wait_for_lanes(u32 mask) { shim::exchange(mask, 0, 0); }

DEVICE i64 compare_and_swap(i64* at, i64 expected, i64 value) {
    shim::maybe_stop();
    const i64 before = *at;
    if (before == expected) *at = value;
    return before;
}
DEVICE void lower_to(int* at, int value) {
    shim::maybe_stop();
    if (value < *at) *at = value;
}
DEVICE void add_to(int* at, int value) {
    shim::maybe_stop();
    *at += value;
}
DEVICE void set_bits(int* at, int bits) {
    shim::maybe_stop();
    *at |= bits;
}
DEVICE i64 read_now(const i64* at) {
    shim::maybe_stop();
    const i64 seen = *at;
    shim::maybe_stop();  // so that what was seen may be out of date when it is used
    return seen;
}

struct alignas(16) Four {
    float v[4];
};
struct alignas(16) Pair {
    i64 x, y;
};
DEVICE bool is_aligned(const void* at) {
    if ((size_t)at % 16 == 0) return true;
    shim::misaligned = true;
    return false;
}
DEVICE Four load_four(const float* at) { return is_aligned(at) ? *(const Four*)at : Four{}; }
DEVICE Pair load_pair(const void* at) { return is_aligned(at) ? *(const Pair*)at : Pair{}; }
DEVICE Four read_four(const float* at) { return load_four(at); }
DEVICE void store_four(float* at, const Four& four) {
    if (is_aligned(at)) *(Four*)at = four;
}

DEVICE u64 multiply_high(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
