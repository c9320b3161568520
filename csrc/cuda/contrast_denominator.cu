// SPDX-License-Identifier: Apache-2.0
// The first pass: log-sum-exp and softmax mean over the denominator.
#include "run.cuh"

namespace secl::cuda {

template void run<Pass::kDenominator, false>(Number type, const Job& job, Stream stream);

}  // namespace secl::cuda
