// SPDX-License-Identifier: Apache-2.0
// The denominator's pass without a value product: the log-sum-exp alone.
#include "launch.cuh"

namespace secl::cuda::hopper {

void run_scan(Number type, const Job& job, Stream stream) {
  if (type == Number::kHalf) return run_width<Element::kHalf, Purpose::kScan>(job, stream);
  run_width<Element::kBfloat16, Purpose::kScan>(job, stream);
}

}  // namespace secl::cuda::hopper
