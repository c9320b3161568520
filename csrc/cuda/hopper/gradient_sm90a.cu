// SPDX-License-Identifier: Apache-2.0
// The backward pass.
#include "launch.cuh"

namespace secl::cuda::hopper {

void run_gradient(Purpose purpose, const Job& job, Stream stream) {
  switch (purpose) {
    case Purpose::kAnchors:
      return run_width<Element::kBfloat16, Purpose::kAnchors>(job, stream);
    case Purpose::kKeys:
      return run_width<Element::kBfloat16, Purpose::kKeys>(job, stream);
    default:
      return run_width<Element::kBfloat16, Purpose::kBoth>(job, stream);
  }
}

}  // namespace secl::cuda::hopper
