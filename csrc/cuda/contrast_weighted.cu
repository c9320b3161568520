// SPDX-License-Identifier: Apache-2.0
// The passes of a contrast whose keys count as many each.
#include "run.cuh"

namespace secl::cuda {

template void run<Pass::kDenominator, true>(Number type, const Job& job, Stream stream);
template void run<Pass::kPositive, true>(Number type, const Job& job, Stream stream);
template void run<Pass::kGradient, true>(Number type, const Job& job, Stream stream);

}  // namespace secl::cuda
