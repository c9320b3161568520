// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup: sum [64, N] += left [64, 16] right [16, N] with fp32 sums in registers, the right
// side in shared memory, the left side there or in registers.
//
// Thread t of the warpgroup holds, for r = 16 (t / 32) + t % 32 / 4 and c = 2 (t % 4), of the sums
//   sum[j][0, 1] = [r, 8 j + c + 0, 1],  sum[j][2, 3] = [r + 8, 8 j + c + 0, 1],
// and of the left side, as pairs of 16-bit numbers,
//   left[0] = [r, c + 0, 1],  left[1] = [r + 8, c + 0, 1],  left[2] = [r, 8 + c + 0, 1],  left[3] = [r + 8, 8
//   + c + 0, 1].
#pragma once

#include <cstdint>

#include "../../contrast_math.h"
#include "barrier.cuh"
#include "plan.h"

namespace secl::cuda::hopper {

constexpr uint64_t kAtomBytes = 1024;  // 8 rows of 128 swizzled bytes

// What the tensor cores are told of an operand in shared memory: where it starts (its buffer aligned to 1024
// bytes), the step between atoms along rows of 64 numbers, where the operand's outer axis lies there, and
// between atoms of 8 rows.
SECL_INLINE uint64_t describe_operand(uint32_t address, uint64_t column_step) {
  constexpr uint64_t kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | (column_step >> 4) << 16 | (kAtomBytes >> 4) << 32 | kSwizzle128 << 62;
}

// Rows of the operand lie along the rows in memory and the product runs along 64 columns: 16 of them are 32
// bytes.
SECL_INLINE uint64_t row_operand(uint32_t address) { return describe_operand(address, 16); }

// The product runs along the rows in memory: 16 of them are two atoms. `column_step`: from 64 columns to the
// next.
SECL_INLINE uint64_t column_operand(uint32_t address, uint32_t column_step) {
  return describe_operand(address, column_step);
}

}  // namespace secl::cuda::hopper

#if !defined(SECL_EMULATE)

namespace secl::cuda::hopper {

// Registers that products read or write must be in place before the first of them, and again after any other
// write.
__device__ __forceinline__ void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void product_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Returns once at most kPending of this warp's latest groups of products are unfinished.
template <int kPending>
__device__ __forceinline__ void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving a use of these registers across this point.
template <int kTiles>
__device__ __forceinline__ void pin(float (&values)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) asm volatile("" : "+f"(values[i / 4][i % 4])::"memory");
}

// Eight, sixteen and so on registers from tile j on; `c` is "+" where the sums go on, "=" where they start.
#define SECL_BIND4(c, j) c "f"(sum[j][0]), c "f"(sum[j][1]), c "f"(sum[j][2]), c "f"(sum[j][3])
#define SECL_BIND8(c, j) SECL_BIND4(c, j), SECL_BIND4(c, j + 1)
#define SECL_BIND16(c, j) SECL_BIND8(c, j), SECL_BIND8(c, j + 2)
#define SECL_BIND32(c, j) SECL_BIND16(c, j), SECL_BIND16(c, j + 4)

#define SECL_SUM32                                                                                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define SECL_SUM40 SECL_SUM32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define SECL_SUM48 SECL_SUM40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define SECL_SUM64 SECL_SUM48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SECL_SUM96                                                                                         \
  SECL_SUM64                                                                                               \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%" \
  "89,"                                                                                                    \
  "%90,%91,%92,%93,%94,%95"
#define SECL_SUM128                                                                                        \
  SECL_SUM96                                                                                               \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116," \
  "%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// `p` to `t` number the operands that follow the sums.
#define SECL_SHARED(N, TYPE, LIST, p, q, r, ...)                                                        \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #r ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N \
               "k16.f32." TYPE "." TYPE " {" LIST "}, %" #p ", %" #q ", add, 1, 1, 0, 0;\n}\n"          \
               : __VA_ARGS__                                                                            \
               : "l"(left), "l"(right), "n"(kAdd))
#define SECL_REGISTERS(N, TYPE, LIST, p, q, r, s, t, ...)                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" LIST "}, {%" #p ",%" #q \
               ",%" #r ",%" #s "}, %" #t ", 1, 1, 1, 1;\n"                                                  \
               : __VA_ARGS__                                                                                \
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right))

#define SECL_ROWS(TYPE, c)                                                                     \
  if constexpr (kTiles == 8) SECL_SHARED(64, TYPE, SECL_SUM32, 32, 33, 34, SECL_BIND32(c, 0)); \
  if constexpr (kTiles == 10)                                                                  \
    SECL_SHARED(80, TYPE, SECL_SUM40, 40, 41, 42, SECL_BIND32(c, 0), SECL_BIND8(c, 8));        \
  if constexpr (kTiles == 12)                                                                  \
    SECL_SHARED(96, TYPE, SECL_SUM48, 48, 49, 50, SECL_BIND32(c, 0), SECL_BIND16(c, 8));       \
  if constexpr (kTiles == 16)                                                                  \
  SECL_SHARED(128, TYPE, SECL_SUM64, 64, 65, 66, SECL_BIND32(c, 0), SECL_BIND32(c, 8))

// sum [64, N] (+)= left [64, 16] right [N, 16]^T, both described by row_operand; without kAdd the sum starts
// here.
template <Element kElement, int kAdd, int kTiles>
__device__ __forceinline__ void multiply_rows(float (&sum)[kTiles][4], uint64_t left, uint64_t right) {
  static_assert(kTiles == 8 || kTiles == 10 || kTiles == 12 || kTiles == 16, "no such product");
  constexpr bool kBfloat16 = kElement == Element::kBfloat16;
  if constexpr (kBfloat16 && kAdd) {
    SECL_ROWS("bf16", "+");
  } else if constexpr (kBfloat16) {
    SECL_ROWS("bf16", "=");
  } else if constexpr (kAdd) {
    SECL_ROWS("f16", "+");
  } else {
    SECL_ROWS("f16", "=");
  }
}

#define SECL_COLUMNS(TYPE)                                                                                  \
  if constexpr (kTiles == 8) SECL_REGISTERS(64, TYPE, SECL_SUM32, 32, 33, 34, 35, 36, SECL_BIND32("+", 0)); \
  if constexpr (kTiles == 16)                                                                               \
    SECL_REGISTERS(128, TYPE, SECL_SUM64, 64, 65, 66, 67, 68, SECL_BIND32("+", 0), SECL_BIND32("+", 8));    \
  if constexpr (kTiles == 32)                                                                               \
  SECL_REGISTERS(256, TYPE, SECL_SUM128, 128, 129, 130, 131, 132, SECL_BIND32("+", 0), SECL_BIND32("+", 8), \
                 SECL_BIND32("+", 16), SECL_BIND32("+", 24))

// sum [64, N] += left [64, 16] right [16, N], the right side described by column_operand.
template <Element kElement, int kTiles>
__device__ __forceinline__ void multiply_columns(float (&sum)[kTiles][4], const uint32_t (&left)[4],
                                                 uint64_t right) {
  static_assert(kTiles == 8 || kTiles == 16 || kTiles == 32, "no such product");
  if constexpr (kElement == Element::kBfloat16) {
    SECL_COLUMNS("bf16");
  } else {
    SECL_COLUMNS("f16");
  }
}

}  // namespace secl::cuda::hopper

#undef SECL_ROWS
#undef SECL_COLUMNS
#undef SECL_SHARED
#undef SECL_REGISTERS
#undef SECL_BIND4
#undef SECL_BIND8
#undef SECL_BIND16
#undef SECL_BIND32
#undef SECL_SUM32
#undef SECL_SUM40
#undef SECL_SUM48
#undef SECL_SUM64
#undef SECL_SUM96
#undef SECL_SUM128

#endif
