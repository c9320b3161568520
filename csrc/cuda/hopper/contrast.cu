// SPDX-License-Identifier: Apache-2.0
// Which jobs are Hopper's, and how they are cut.
#include <algorithm>
#include <stdexcept>

#include "../numbers.cuh"
#include "contrast.h"
#include "plan.h"

namespace secl::cuda::hopper {

void run_scan(Number type, const Job& job, Stream stream);
void run_value(Number type, const Job& job, Stream stream);
void run_gradient(Purpose purpose, Number type, const Job& job, Stream stream);

namespace {

constexpr int kLeastTiles =
    8;  // of a run: below it filling the ring and the merge cost more than the run saves

Purpose purpose_of(Pass pass, const Job& job) {
  if (pass == Pass::kGradient) {
    if (job.rows_are_anchors && job.rows_are_keys) return Purpose::kBoth;
    return job.rows_are_anchors ? Purpose::kAnchors : Purpose::kKeys;
  }
  return job.grad == nullptr ? Purpose::kScan : Purpose::kValue;
}

}  // namespace

const char* objection(Pass pass, Number type, const Job& job) {
#if !defined(SECL_SM90A) && !defined(SECL_EMULATE)
  return "this build has no code for sm_90a; build with 90a in SECL_CUDA_ARCHS";
#endif
  if (capability() != 90) return "it needs a GPU of compute capability 9.0";
  if (pass == Pass::kPositive) return "the positives' pass has no kernel of its own";
  if (pass == Pass::kSigmoid) return "the sigmoid loss has no kernel of its own";
  if (!serves(job.width)) return "it serves rows of 64, 128 and 256 numbers";
  if (!job.rules.bounded) return "it needs unit rows that count once, and a temperature of 0.025 or more";
  if (type == Number::kHalf && job.grad != nullptr && pass == Pass::kDenominator &&
      job.columns.field[kFactor] != nullptr) {
    return "weights times the keys' factors may leave fp16";
  }
  if (!on_boundary(job.rows.rows) || !on_boundary(job.columns.rows)) return "rows must start on 16 bytes";
  return nullptr;
}

int32_t splits_of(Pass pass, const Job& job) {
  const Plan plan = hopper::plan(job.width, purpose_of(pass, job));
  const int64_t wanted = multiprocessors() / std::max(1u, blocks_for(job.rows.count, plan.rows()));
  const int64_t most = blocks_for(job.columns.count, int64_t{kLeastTiles} * plan.columns);
  return static_cast<int32_t>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(most, 1)));
}

void run(Pass pass, Number type, const Job& job, Stream stream) {
#if defined(SECL_SM90A) || defined(SECL_EMULATE)
  const Purpose purpose = purpose_of(pass, job);
  if (purpose == Purpose::kScan) return run_scan(type, job, stream);
  if (purpose == Purpose::kValue) return run_value(type, job, stream);
  run_gradient(purpose, type, job, stream);
#endif
}

}  // namespace secl::cuda::hopper
