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

// Writes the fields that are wanted of the anchors.
void write_anchor_fields(const AnchorFields& anchors, Stream stream);

}  // namespace secl::cuda
