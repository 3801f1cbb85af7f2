// What only a GPU has: its threads, values handed from lane to lane, atomics, loads of 16 bytes. Nothing else in these
// sources knows where it runs: tests put a version of this file for the CPU in its place (tests/gpu/shim.cuh).
#pragma once

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned char u8;

const int THREADS = 256;  // of every block

#define KERNEL extern "C" __global__ void
// At most 80 registers a thread, for 3 blocks a multiprocessor: kernels that wait for random rows need many that wait.
#define CROWDED __launch_bounds__(THREADS, 3)
#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__

DEVICE i64 thread_number() { return (i64)blockIdx.x * THREADS + threadIdx.x; }
DEVICE int thread_in_block() { return threadIdx.x; }
DEVICE i64 block_number() { return blockIdx.x; }

// What lane `source` (0..31) of the warp has. All lanes of `mask` make the call together.
template <class T>
DEVICE T value_of_lane(u32 mask, T value, int source) {
    return __shfl_sync(mask, value, source);
}

// All lanes of `mask` have come here, and see what each wrote before.
DEVICE void wait_for_lanes(u32 mask) { __syncwarp(mask); }

// What was there before.
DEVICE i64 compare_and_swap(i64* at, i64 expected, i64 value) {
    return (i64)atomicCAS((u64*)at, (u64)expected, (u64)value);
}
DEVICE void lower_to(int* at, int value) { atomicMin(at, value); }
DEVICE void add_to(int* at, int value) { atomicAdd(at, value); }
DEVICE void set_bits(int* at, int bits) { atomicOr(at, bits); }

// What is there now, although other threads of the launch may be writing it.
DEVICE i64 read_now(const i64* at) { return *(const volatile i64*)at; }

// 16 bytes in one access, at an address that is a multiple of 16.
struct alignas(16) Four {
    float v[4];
};
struct alignas(16) Pair {
    i64 x, y;
};
// Of memory that nobody writes during the launch.
DEVICE Four load_four(const float* at) {
    const float4 four = __ldg((const float4*)at);
    return Four{{four.x, four.y, four.z, four.w}};
}
DEVICE Pair load_pair(const void* at) {
    const longlong2 pair = __ldg((const longlong2*)at);
    return Pair{pair.x, pair.y};
}
// Of memory that this thread may write.
DEVICE Four read_four(const float* at) {
    const float4 four = *(const float4*)at;
    return Four{{four.x, four.y, four.z, four.w}};
}
DEVICE void store_four(float* at, const Four& four) {
    *(float4*)at = make_float4(four.v[0], four.v[1], four.v[2], four.v[3]);
}

DEVICE u64 multiply_high(u64 a, u64 b) { return __umul64hi(a, b); }
