// SPDX-License-Identifier: Apache-2.0
// Hopper's contrast kernels as the other passes see them: whether a job is theirs, how to cut it, how to run
// it.
#pragma once

#include "../contrast.h"

namespace secl::cuda::hopper {

// Why these kernels do not serve a job, or null.
const char* objection(Pass pass, Number type, const Job& job);

int32_t splits_of(Pass pass, const Job& job);

// Starts one pass; the parts of a split one are left to be merged.
void run(Pass pass, Number type, const Job& job, Stream stream);

}  // namespace secl::cuda::hopper
