// SPDX-License-Identifier: Apache-2.0
// The CPU implementations behind the schema table of ops.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace secl::cpu {

using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contrast_forward(const Tensor& anchors,        // [N, D]
                                                                    const Tensor& keys,           // [M, D]
                                                                    const Tensor& anchor_labels,  // [N] int32
                                                                    const Tensor& key_labels,     // [M] int32
                                                                    const Maybe& anchor_groups,   // [N] int32
                                                                    const Maybe& key_groups,      // [M] int32
                                                                    const Maybe& exclude,         // [N] int64
                                                                    int64_t positive_start,
                                                                    int64_t negative_stop,
                                                                    const Maybe& key_inverse,  // [M] float32
                                                                    const Maybe& known_lse,    // [N] float32
                                                                    double scale, int64_t flags);

std::tuple<Tensor, Tensor> contrast_backward(
    const Tensor& grad_loss,  // [N] float32
    const Tensor& push,       // [N] float32
    const Tensor& draw,       // [N] float32
    const Tensor& anchors,    // [N, D]; the rest as in the forward pass
    const Tensor& keys, const Tensor& anchor_labels, const Tensor& key_labels, const Maybe& anchor_groups,
    const Maybe& key_groups, const Maybe& exclude, int64_t positive_start, int64_t negative_stop,
    const Tensor& lse,  // [N] float32
    double scale, int64_t flags);

std::tuple<Tensor, Tensor> unit_rows(const Tensor& rows,     // [n, D]
                                     const Tensor& labels);  // [n] int32

Tensor row_inverse(const Tensor& rows,     // [n, D]
                   const Tensor& labels);  // [n] int32

Tensor unit_rows_backward(const Tensor& grad,      // [n, D] float32
                          const Maybe& factor,     // [n] float32
                          const Maybe& upstream,   // [n] float32 of any stride, goes with factor
                          const Tensor& unit,      // [n, D]
                          const Tensor& inverse);  // [n] float32

// Reads the rows, and where `inverse` is given divides each by its norm.
void gather(const Tensor& features,  // [B, D, *spatial]
            const Tensor& index,     // [n] int64
            Tensor rows,             // [n, D] of any floating type, written to
            Maybe inverse);          // [n] float32, 1 / norm, written to

void gather_backward(const Tensor& grad,     // [n, D]
                     const Maybe& factor,    // [n] float32
                     const Maybe& upstream,  // [n] float32 of any stride, goes with factor
                     const Tensor& index,    // [n] int64
                     const Maybe& unit,      // [n, D] rows that the forward pass normalised
                     const Maybe& inverse,   // [n] float32, goes with unit
                     bool unique,            // no pixel stands twice in the index
                     Tensor result);         // [B, D, *spatial] zeros, written to

std::tuple<Tensor, Tensor> sample(const Tensor& labels,   // [B, *spatial] int64
                                  const Maybe& eligible,  // [B, *spatial] bool
                                  const Maybe& scores,    // [B, *spatial] float64
                                  const Tensor& seed,     // [1] int64
                                  int64_t per_class, int64_t num_classes, int64_t ignore_index,
                                  std::string strategy, int64_t stream);

Tensor probe(const Tensor& x /* [n] float32 */, std::string function);

}  // namespace secl::cpu
