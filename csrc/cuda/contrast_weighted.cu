// SPDX-License-Identifier: Apache-2.0
// The passes of a contrast whose keys count as many each.
#include "run.cuh"

namespace secl::cuda {

template void run_weighted<Pass::kDenominator>(Number type, const Job& job, Stream stream);
template void run_weighted<Pass::kPositive>(Number type, const Job& job, Stream stream);
template void run_weighted<Pass::kGradient>(Number type, const Job& job, Stream stream);

}  // namespace secl::cuda
