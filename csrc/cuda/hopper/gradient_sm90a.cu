// SPDX-License-Identifier: Apache-2.0
// The backward pass.
#include "launch.cuh"

namespace secl::cuda::hopper {

namespace {

template <Purpose kPurpose>
void run_type(Number type, const Job& job, Stream stream) {
  if (type == Number::kHalf) return run_width<Element::kHalf, kPurpose>(job, stream);
  run_width<Element::kBfloat16, kPurpose>(job, stream);
}

}  // namespace

void run_gradient(Purpose purpose, Number type, const Job& job, Stream stream) {
  switch (purpose) {
    case Purpose::kAnchors:
      return run_type<Purpose::kAnchors>(type, job, stream);
    case Purpose::kKeys:
      return run_type<Purpose::kKeys>(type, job, stream);
    default:
      return run_type<Purpose::kBoth>(type, job, stream);
  }
}

}  // namespace secl::cuda::hopper
