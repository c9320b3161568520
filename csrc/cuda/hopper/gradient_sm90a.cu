// SPDX-License-Identifier: Apache-2.0
// The backward pass.
#include "launch.cuh"

namespace secl::cuda::hopper {

void run_gradient(const Job& job, Stream stream) { run_width<Element::kBfloat16, Purpose::kGradient>(job, stream); }

}  // namespace secl::cuda::hopper
