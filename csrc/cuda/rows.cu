// SPDX-License-Identifier: Apache-2.0
// Normalisation of rows and its gradient; a row is one warp's.
#include "kernels.h"
#include "norm.cuh"
#include "numbers.cuh"

namespace secl::cuda {
namespace {

constexpr int kWarps = 8;   // of a block, a row each
constexpr int kBlocks = 3;  // of a multiprocessor: asked for more, the compiler keeps registers in memory

__device__ __forceinline__ int64_t warp_row() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}

template <class T, int width>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks)
    unit_rows_kernel(const Vector<T, width>* __restrict__ rows,  // [n, D]
                     const int32_t* __restrict__ labels,         // [n]
                     Vector<T, width>* __restrict__ unit,        // [n, D] or null
                     float* __restrict__ inverse,                // [n]
                     int64_t count, int64_t parts /* D / width */) {
  const int64_t row = warp_row();
  if (row >= count) return;
  const int lane = threadIdx.x % kWarp;
  const bool reads = labels[row] >= 0;
  const Vector<T, width>* from = rows + row * parts;
  const Norm norm = norm_of([&](const auto& body) {
    if (!reads) return;
    for (int64_t part = lane; part < parts; part += kWarp) {
      const Vector<T, width> values = from[part];
#pragma unroll
      for (int i = 0; i < width; ++i) body(to_float(values.at[i]));
    }
  });
  if (lane == 0) inverse[row] = norm.inverse();
  if (unit == nullptr) return;
  for (int64_t part = lane; part < parts; part += kWarp) {
    Vector<T, width> values = {};
    if (reads) values = from[part];
#pragma unroll
    for (int i = 0; i < width; ++i) values.at[i] = from_float<T>(norm.unit(to_float(values.at[i])));
    unit[row * parts + part] = values;
  }
}

template <class T, int width>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks)
    unit_rows_backward_kernel(const float* __restrict__ grad,             // [n, D]
                              RowScale scale,                             // [n]
                              const Vector<T, width>* __restrict__ unit,  // [n, D]
                              const float* __restrict__ inverse,          // [n]
                              Vector<T, width>* __restrict__ result,      // [n, D]
                              int64_t count, int64_t parts /* D / width */) {
  const int64_t row = warp_row();
  if (row >= count) return;
  const int lane = threadIdx.x % kWarp;
  const float* from = grad + row * parts * width;
  const Vector<T, width>* along = unit + row * parts;
  const float factor = scale.of(row);
  const Radial lost = radial([&](const auto& body) {
    for (int64_t part = lane; part < parts; part += kWarp) {
      const Vector<T, width> values = along[part];
#pragma unroll
      for (int i = 0; i < width; ++i) body(scaled(from[part * width + i], factor), to_float(values.at[i]));
    }
  });
  for (int64_t part = lane; part < parts; part += kWarp) {
    Vector<T, width> values = along[part];
#pragma unroll
    for (int i = 0; i < width; ++i) {
      values.at[i] = from_float<T>(
          through_norm(scaled(from[part * width + i], factor), to_float(values.at[i]), lost, inverse[row]));
    }
    result[row * parts + part] = values;
  }
}

}  // namespace

void launch_unit_rows(const UnitRows& job, Stream stream) {
  const Grid grid{dim3(blocks_for(job.count, kWarps)), dim3(kWarps * kWarp)};
  const bool aligned = on_boundary(job.rows) && (job.unit == nullptr || on_boundary(job.unit));
  with_number(job.type, [&](auto zero) {
    using T = decltype(zero);
    with_vector<T>(aligned, job.depth, [&](auto width) {
      using Part = Vector<T, width.kValue>;
      launch(unit_rows_kernel<T, width.kValue>, grid, stream, static_cast<const Part*>(job.rows), job.labels,
             static_cast<Part*>(job.unit), job.inverse, job.count, job.depth / width.kValue);
    });
  });
}

void launch_unit_rows_backward(const UnitRowsBackward& job, Stream stream) {
  const Grid grid{dim3(blocks_for(job.count, kWarps)), dim3(kWarps * kWarp)};
  const bool aligned = on_boundary(job.unit) && on_boundary(job.result);
  with_number(job.type, [&](auto zero) {
    using T = decltype(zero);
    with_vector<T>(aligned, job.depth, [&](auto width) {
      using Part = Vector<T, width.kValue>;
      launch(unit_rows_backward_kernel<T, width.kValue>, grid, stream, job.grad, job.scale,
             static_cast<const Part*>(job.unit), job.inverse, static_cast<Part*>(job.result), job.count,
             job.depth / width.kValue);
    });
  });
}

}  // namespace secl::cuda
