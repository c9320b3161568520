// SPDX-License-Identifier: Apache-2.0
// The backward pass: gradients from the saved state.
#include "run.cuh"

namespace secl::cuda {

template void run<Pass::kGradient, false>(Number type, const Job& job, Stream stream);

}  // namespace secl::cuda
