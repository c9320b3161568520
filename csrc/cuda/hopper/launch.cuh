// SPDX-License-Identifier: Apache-2.0
// Launches one kernel: describes both matrices to the copy engine, and takes a block for each tile of rows.
#pragma once

#include <stdexcept>

#include "../numbers.cuh"
#include "contrast.cuh"
#include "contrast.h"

namespace secl::cuda::hopper {

inline TensorMap map_rows(const Side& side, int width, int rows_per_box, bool half) {
  TensorMap map;
  const char* refusal = describe_rows(&map, side.rows, side.count, width, rows_per_box, half);
  if (refusal != nullptr) throw std::runtime_error(refusal);
  return map;
}

template <class S>
void run_shape(const Job& job, Stream stream) {
  if (job.rows.count == 0) return;
  constexpr bool kHalf = S::kElement == Element::kHalf;
  const Side& columns =
      job.columns.count == 0 ? job.rows : job.columns;  // no map describes nothing; it is not used
  const TensorMap rows_map = map_rows(job.rows, job.width, S::kRows, kHalf);
  const TensorMap columns_map = map_rows(columns, job.width, S::kColumns, kHalf);
  const Grid grid{dim3(blocks_for(job.rows.count, S::kRows), static_cast<unsigned>(job.splits)),
                  dim3(kThreads), Memory<S>::size()};
  launch(contrast_kernel<S>, grid, stream, rows_map, columns_map, job);
}

template <Element kElement, Purpose kPurpose>
void run_width(const Job& job, Stream stream) {
  if (job.width == 64) return run_shape<Shape<kElement, 64, kPurpose>>(job, stream);
  if (job.width == 128) return run_shape<Shape<kElement, 128, kPurpose>>(job, stream);
  return run_shape<Shape<kElement, 256, kPurpose>>(job, stream);
}

}  // namespace secl::cuda::hopper
