// SPDX-License-Identifier: Apache-2.0
// The contrast kernels as the operation calls them.
#pragma once

#include "job.h"
#include "kernels.h"

namespace secl::cuda {

// Into how many runs a pass cuts its columns, so that few rows still fill the device; a job with several
// needs memory for their parts.
int32_t splits_of(Pass pass, Number type, const Job& job);

// Runs a pass of bf16 or fp16 rows, not wider than kWidest.
void run_pass(Pass pass, Number type, const Job& job, Stream stream);

// Fields of the anchors as the gradient's pass reads them.
void write_terms(const Terms& terms, Stream stream);

}  // namespace secl::cuda
