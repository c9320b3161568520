// SPDX-License-Identifier: Apache-2.0
// The denominator's pass with a value product: the log-sum-exp and the softmax mean of the keys.
#include "launch.cuh"

namespace secl::cuda::hopper {

void run_value(Number type, const Job& job, Stream stream) {
  if (type == Number::kHalf) return run_width<Element::kHalf, Purpose::kValue>(job, stream);
  run_width<Element::kBfloat16, Purpose::kValue>(job, stream);
}

}  // namespace secl::cuda::hopper
