// SPDX-License-Identifier: Apache-2.0
// Small kernels that test the emulated GPU itself.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>

namespace secl::emulate {

// Runs the kernel of this name, most of which do what a kernel must not.
void probe(std::string name);

// left [16, 16] times right [16, 8] of bf16, fp16 or (tf32) fp32 numbers by one matrix product of a warp, the
// factors read from shared memory; `transposed`: right is given as [8, 16].
torch::stable::Tensor product(const torch::stable::Tensor& left, const torch::stable::Tensor& right,
                              bool transposed);

}  // namespace secl::emulate
