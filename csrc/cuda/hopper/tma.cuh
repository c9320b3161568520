// SPDX-License-Identifier: Apache-2.0
// The bulk tensor copy: rows of a matrix [n, D] of 16-bit numbers into shared memory, in boxes of 64 columns
// whose 128-byte rows are swizzled as the tensor cores read them. Rows beyond n arrive as zeros and are never
// read.
#pragma once

#include <cstdint>

#include "barrier.cuh"
#include "plan.h"

#if !defined(SECL_EMULATE)
#include <cuda.h>
#include <cuda_runtime.h>

namespace secl::cuda::hopper {

using TensorMap = CUtensorMap;

// Starts the copy of box (column, row) into `target`; its bytes, zeros included, count towards the barrier's
// phase.
__device__ __forceinline__ void copy_box(const TensorMap* map, uint64_t* barrier, void* target, int column,
                                         int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], "
      "[%2];" ::"r"(shared_address(target)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// Why a matrix cannot be copied so, or null. The map is written for boxes [rows_per_box, 64].
inline const char* describe_rows(TensorMap* map, const void* rows, int64_t count, int width, int rows_per_box,
                                 bool half) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const auto encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled", 12000));
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(count)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(width) * 2};
  const cuuint32_t box[2] = {kBoxColumns, static_cast<cuuint32_t>(rows_per_box)};
  const cuuint32_t steps[2] = {1, 1};
  const auto status = encode(map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                             2, const_cast<void*>(rows), sizes, strides, box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refused the matrix";
}

}  // namespace secl::cuda::hopper

#endif
