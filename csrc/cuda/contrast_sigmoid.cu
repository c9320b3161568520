// SPDX-License-Identifier: Apache-2.0
// The sigmoid loss: losses and slopes of all pairs, and either side's gradient.
#include "run.cuh"

namespace secl::cuda {

template void run<Pass::kSigmoid, false>(Number type, const Job& job, Stream stream);

}  // namespace secl::cuda
