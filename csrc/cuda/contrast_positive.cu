// SPDX-License-Identifier: Apache-2.0
// The second pass: losses, attraction and its gradient over the positives.
#include "run.cuh"

namespace secl::cuda {

template void run<Pass::kPositive, false>(Number type, const Job& job, Stream stream);

}  // namespace secl::cuda
