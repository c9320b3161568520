// SPDX-License-Identifier: Apache-2.0
// The one header through which kernels reach CUDA: launches, shared memory, barriers, warp collectives,
// copies and matrix products. Under SECL_EMULATE the same names run on the CPU (tests/emulate), so that tests
// execute the very sources that nvcc compiles. A kernel therefore uses dynamic shared memory only, no static
// one, and no inline PTX of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime.h"

#if defined(SECL_EMULATE)
#include <emulate/device.h>
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

namespace secl::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// How many blocks of how many threads, with how many bytes of dynamic shared memory, in clusters of which
// shape.
struct Grid {
  dim3 blocks, threads;
  size_t shared = 0;
  dim3 cluster = dim3(1, 1, 1);
};

// Puts a kernel on a stream; a grid without a block is no work.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, Stream stream, Arguments&&... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  if (grid.shared > kWithoutAsking) {
    check_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(grid.shared)),
                 "asking for shared memory");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute cluster = {};
  if (grid.cluster.x * grid.cluster.y * grid.cluster.z > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = grid.cluster.x;
    cluster.val.clusterDim.y = grid.cluster.y;
    cluster.val.clusterDim.z = grid.cluster.z;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  check_status(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "a kernel launch");
}

// The block's dynamic shared memory, aligned for every use.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char secl_shared_memory[];
  return secl_shared_memory;
}

// The address that PTX uses for a place in shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp(unsigned mask = kAllLanes) { __syncwarp(mask); }

// A barrier of some of the block's threads: 1 <= id <= 15, a multiple of 32 threads.
__device__ __forceinline__ void sync_some(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_some(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(kAllLanes, value, lanes);
}
// Of the lane `lanes` below; the lowest lanes keep their own.
template <class T>
__device__ __forceinline__ T shuffle_up(T value, int lanes) {
  return __shfl_up_sync(kAllLanes, value, lanes);
}
// Of the lane `lanes` above; the highest lanes keep their own.
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int lanes) {
  return __shfl_down_sync(kAllLanes, value, lanes);
}
__device__ __forceinline__ unsigned ballot(bool value) { return __ballot_sync(kAllLanes, value); }
// The lanes that have the same value.
__device__ __forceinline__ unsigned lanes_like(int value) { return __match_any_sync(kAllLanes, value); }

__device__ __forceinline__ uint32_t float_bits(float x) { return __float_as_uint(x); }

__device__ __forceinline__ float float_from_bits(uint32_t bits) { return __uint_as_float(bits); }

// Adds to a count that other threads add to as well: of whole numbers the sum is the same in any order.
__device__ __forceinline__ void add_count(int32_t* count, int32_t value) { atomicAdd(count, value); }

__device__ __forceinline__ int population(unsigned bits) { return __popc(bits); }

__device__ __forceinline__ int leading_zeros(uint32_t bits) { return __clz(static_cast<int>(bits)); }

// A number that no thread writes during the launch; the emulated GPU counts its bytes.
template <class T>
__device__ __forceinline__ T read_input(const T* place) {
  return __ldg(place);
}

// 2^x, subnormal numbers as 0; relative error 2^-22.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float x) {
  return __float2half_rn(x);
}

// Two rounded numbers in one register, as the matrix products take them: `low` is the earlier one.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
__device__ __forceinline__ uint32_t pack<fp16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// The bits of a float rounded to tf32.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Four 8x8 matrices of 16-bit numbers out of shared memory: lane l names row l % 8 of matrix l / 8, 16 bytes
// each, and gets of every matrix i, in r[i], the numbers 2 (l % 4) and the next of its row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of two matrices, whose rows lanes 0 to 15 name.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// d [16, 8] += a [16, 16] b [16, 8], 16-bit factors, fp32 sums. With g = lane / 4 and t = 2 (lane % 4):
// d = rows {g, g, g + 8, g + 8}, columns {t, t + 1, t, t + 1}; a = row g, columns t, t + 1 | row g + 8 | row
// g, columns t + 8, t + 9 | row g + 8; b = rows t, t + 1 of column g | rows t + 8, t + 9.
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void multiply_add<bf16>(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply_add<fp16>(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d [16, 8] += a [16, 8] b [8, 8] with tf32 factors. With g = lane / 4 and t = lane % 4: d as above; a = row
// g, column t | row g + 8, column t | row g, column t + 4 | row g + 8, column t + 4; b = rows t, t + 4 of
// column g.
__device__ __forceinline__ void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Starts to copy 16 bytes into shared memory; zeros where `valid` is false, and nothing is read. Both places
// are multiples of 16 bytes. The bytes may be read once the thread has waited for the group they were
// committed to and, by other threads, after a barrier behind that.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// The same of one word of 4 bytes.
__device__ __forceinline__ void copy_async_word(uint32_t* shared, const uint32_t* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of the thread's newest groups are still under way.
template <int pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace secl::cuda

#endif  // SECL_EMULATE

namespace secl::cuda {

constexpr int kWarp = 32;

// Several numbers that one instruction moves.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T at[count];
};

// Sum over the warp, the same bits in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}

}  // namespace secl::cuda
