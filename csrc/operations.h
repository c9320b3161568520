// SPDX-License-Identifier: Apache-2.0
// The table of contents of the native side, once for all devices: each operation's schema, its C++ signature,
// and how a device registers its eleven implementations.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "params.h"

namespace secl {

// By anchor [N]: loss, log-sum-exp, pull and count (int32, of weighted keys float32); then the anchors'
// gradient [N, D], [0, D] where it is not asked for.
using ContrastState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// By anchor [N]: sigmoid loss, its derivative by the bias, and how many keys it meets (int32); then the sum
// of slope times key [N, D], [0, D] where no gradient is asked for.
using SigmoidState = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// A choice crosses as a number: torch's stable ABI leaks each string that an operation is given.
template <class Library>
void define_operations(Library& m) {
  m.def("unit_rows(Tensor rows, Tensor labels) -> (Tensor unit, Tensor inverse)");
  m.def("row_inverse(Tensor rows, Tensor labels) -> Tensor");
  m.def(
      "unit_rows_backward(Tensor grad, Tensor? factor, Tensor? upstream, Tensor unit, Tensor inverse) -> "
      "Tensor");
  m.def(
      "contrast_forward(Tensor anchors, Tensor keys, Tensor anchor_labels, Tensor key_labels, Tensor? "
      "anchor_groups, Tensor? key_groups, Tensor? exclude, int positive_start, int negative_stop, "
      "Tensor? key_weights, Tensor? key_inverse, Tensor? known_lse, float scale, int flags) "
      "-> (Tensor loss, Tensor lse, Tensor pull, Tensor count, Tensor grad_anchors)");
  m.def(
      "contrast_backward(Tensor grad_loss, Tensor push, Tensor draw, Tensor anchors, Tensor keys, Tensor "
      "anchor_labels, Tensor key_labels, Tensor? anchor_groups, Tensor? key_groups, Tensor? exclude, int "
      "positive_start, int negative_stop, Tensor? key_weights, Tensor lse, float scale, int flags) "
      "-> (Tensor grad_anchors, Tensor grad_keys)");
  m.def(
      "reduce(Tensor loss, Tensor pull, Tensor count, Tensor? weights, int reduction) -> (Tensor value, "
      "Tensor factor, Tensor push, Tensor draw)");
  m.def("gather(Tensor features, Tensor index, Tensor(a!) rows, Tensor(b!)? inverse) -> ()");
  m.def(
      "gather_backward(Tensor grad, Tensor? factor, Tensor? upstream, Tensor index, Tensor? unit, Tensor? "
      "inverse, bool unique, Tensor(a!) result) -> ()");
  m.def(
      "sample(Tensor labels, Tensor? eligible, Tensor? scores, Tensor seed, int per_class, int num_classes, "
      "int ignore_index, int strategy, int stream) -> (Tensor index, Tensor label)");
  m.def(
      "sigmoid_forward(Tensor anchors, Tensor keys, Tensor anchor_labels, Tensor key_labels, Tensor? "
      "anchor_groups, Tensor? key_groups, Tensor? exclude, int positive_start, int negative_stop, Tensor? "
      "key_inverse, float scale, float bias, Tensor? learned_scale, Tensor? learned_bias, int flags) "
      "-> (Tensor loss, Tensor tilt, Tensor count, Tensor grad_anchors)");
  m.def(
      "sigmoid_backward(Tensor weight, Tensor anchors, Tensor keys, Tensor anchor_labels, Tensor key_labels, "
      "Tensor? anchor_groups, Tensor? key_groups, Tensor? exclude, int positive_start, int negative_stop, "
      "float scale, float bias, Tensor? learned_scale, Tensor? learned_bias, int flags) -> Tensor");
  m.def(
      "info_nce(Tensor anchors, Tensor? keys, Tensor anchor_labels, Tensor? key_labels, Tensor? "
      "anchor_groups, "
      "Tensor? key_groups, Tensor? exclude, Tensor? weights, bool normalize, float scale, int flags, int "
      "reduction) -> (Tensor value, Tensor grad_anchors, Tensor grad_keys, bool served)");
  m.def(
      "pixel_contrast(Tensor features, Tensor labels, Tensor? key_features, Tensor? key_labels, Tensor? "
      "eligible, Tensor? key_eligible, Tensor? scores, Tensor? seed, Tensor? key_seed, int seed_number, int "
      "key_seed_number, int key_stream, int per_class, int num_classes, int ignore_index, int strategy, bool "
      "normalize, float scale, int flags, int reduction) -> (Tensor value, Tensor grad_rows, Tensor pixels, "
      "Tensor grad_keys, Tensor key_pixels, bool served)");
  m.def("small_backward(Tensor rows, Tensor? pixels, Tensor upstream, Tensor(a!) result) -> ()");
}

// What a device implements. These functions are never defined: a device's own are declared by their types.
namespace signature {

std::tuple<Tensor, Tensor> unit_rows(const Tensor& rows,     // [n, D]
                                     const Tensor& labels);  // [n] int32

Tensor row_inverse(const Tensor& rows,     // [n, D]
                   const Tensor& labels);  // [n] int32

Tensor unit_rows_backward(const Tensor& grad,      // [n, D] float32
                          const Maybe& factor,     // [n] float32
                          const Maybe& upstream,   // [n] float32 of any stride, goes with factor
                          const Tensor& unit,      // [n, D]
                          const Tensor& inverse);  // [n] float32

ContrastState contrast_forward(const ContrastCall& call,
                               const Maybe& key_inverse,  // [M] float32
                               const Maybe& known_lse);   // [N] float32

// An anchor whose push and draw are 0 does not count: nothing of its row reaches a key's gradient.
std::tuple<Tensor, Tensor> contrast_backward(const ContrastCall& call,
                                             const Tensor& grad_loss,  // [N] float32; on CUDA of any stride
                                             const Tensor& push,       // [N] float32
                                             const Tensor& draw,       // [N] float32
                                             const Tensor& lse);       // [N] float32

SigmoidState sigmoid_forward(const ContrastCall& call,
                             const Maybe& key_inverse,  // [M] float32
                             const SigmoidLogit& logit);

// Of the keys [M, D]: sum of weight, slope and anchor. On a CPU an anchor of weight 0 does not count, but
// under kSelf, where it is a key as well.
Tensor sigmoid_backward(const ContrastCall& call,
                        const Tensor& weight,  // [N] float32
                        const SigmoidLogit& logit);

std::tuple<Tensor, Tensor, Tensor, Tensor> reduce(const Tensor& loss,    // [n] float32
                                                  const Tensor& pull,    // [n] float32
                                                  const Tensor& count,   // [n] int32, or float32
                                                  const Maybe& weights,  // [n] float32
                                                  int64_t reduction);

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

std::tuple<Tensor, Tensor> sample(const Tensor& labels,   // [B, *spatial] int64; on CUDA int32 or uint8 too
                                  const Maybe& eligible,  // [B, *spatial] bool
                                  const Maybe& scores,    // [B, *spatial] float64; on CUDA float32
                                  const Tensor& seed,     // [1] int64
                                  int64_t per_class, int64_t num_classes, int64_t ignore_index,
                                  int64_t strategy, int64_t stream);

}  // namespace signature

// The whole loss of few rows on a CPU, under the mean or the sum; false, and nothing, where it is not served.
struct SmallCall {
  const Tensor& anchors;        // [N, D]
  const Maybe& keys;            // [M, D]; none: the anchors
  const Tensor& anchor_labels;  // [N] int64 or int32, and so are all labels and groups
  const Maybe& key_labels;      // [M]
  const Maybe& anchor_groups;   // [N]
  const Maybe& key_groups;      // [M]
  const Maybe& exclude;         // [N] int64
  const Maybe& weights;         // [N] float32
  bool normalize;
  double scale;
  int64_t flags, reduction;
};

// Value [], gradients of the anchors [N, D] and of the keys [M, D] in float32 ([0, D] where not asked for).
using SmallState = std::tuple<Tensor, Tensor, Tensor, bool>;

// One side of the whole pixel step.
struct PixelSide {
  const Tensor& features;  // [B, D, *spatial]
  const Tensor& labels;    // [B, *any] int64, int32 or uint8
  const Maybe& eligible;   // [B, *any] bool
  const Maybe& scores;     // [B, *any] float32 or float64
  const Maybe& seed;       // [1] int64; none: seed_number
  int64_t seed_number, stream;
};

struct PixelOptions {
  int64_t per_class, num_classes, ignore_index, strategy;
  bool normalize;
  double scale;
  int64_t flags, reduction;
};

// Value []; gradient rows of the anchors' pixels [n, D] and their numbers [n]; the same of the keys'.
using PixelState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, bool>;

namespace cpu {

SmallState info_nce(const SmallCall& call);
PixelState pixel_contrast(const PixelSide& anchors, const PixelSide* keys, const PixelOptions& options);
// Gradient rows times the upstream number [], as rows or into a map of zeros at their pixels.
void small_backward(const Tensor& rows, const Maybe& pixels, const Tensor& upstream, Tensor result);

struct Operations {
  static decltype(signature::unit_rows) unit_rows;
  static decltype(signature::row_inverse) row_inverse;
  static decltype(signature::unit_rows_backward) unit_rows_backward;
  static decltype(signature::contrast_forward) contrast_forward;
  static decltype(signature::contrast_backward) contrast_backward;
  static decltype(signature::sigmoid_forward) sigmoid_forward;
  static decltype(signature::sigmoid_backward) sigmoid_backward;
  static decltype(signature::reduce) reduce;
  static decltype(signature::gather) gather;
  static decltype(signature::gather_backward) gather_backward;
  static decltype(signature::sample) sample;
};
}  // namespace cpu

namespace cuda {
struct Operations {
  static decltype(signature::unit_rows) unit_rows;
  static decltype(signature::row_inverse) row_inverse;
  static decltype(signature::unit_rows_backward) unit_rows_backward;
  static decltype(signature::contrast_forward) contrast_forward;
  static decltype(signature::contrast_backward) contrast_backward;
  static decltype(signature::sigmoid_forward) sigmoid_forward;
  static decltype(signature::sigmoid_backward) sigmoid_backward;
  static decltype(signature::reduce) reduce;
  static decltype(signature::gather) gather;
  static decltype(signature::gather_backward) gather_backward;
  static decltype(signature::sample) sample;
};
}  // namespace cuda

// The operations of the contrast as they are called: what both passes share becomes one argument.
template <class Operations>
ContrastState contrast_forward(const Tensor& anchors, const Tensor& keys, const Tensor& anchor_labels,
                               const Tensor& key_labels, const Maybe& anchor_groups, const Maybe& key_groups,
                               const Maybe& exclude, int64_t positive_start, int64_t negative_stop,
                               const Maybe& key_weights, const Maybe& key_inverse, const Maybe& known_lse,
                               double scale, int64_t flags) {
  return Operations::contrast_forward({anchors, keys, anchor_labels, key_labels, anchor_groups, key_groups,
                                       exclude, positive_start, negative_stop, key_weights, scale, flags},
                                      key_inverse, known_lse);
}

template <class Operations>
std::tuple<Tensor, Tensor> contrast_backward(const Tensor& grad_loss, const Tensor& push, const Tensor& draw,
                                             const Tensor& anchors, const Tensor& keys,
                                             const Tensor& anchor_labels, const Tensor& key_labels,
                                             const Maybe& anchor_groups, const Maybe& key_groups,
                                             const Maybe& exclude, int64_t positive_start,
                                             int64_t negative_stop, const Maybe& key_weights,
                                             const Tensor& lse, double scale, int64_t flags) {
  return Operations::contrast_backward({anchors, keys, anchor_labels, key_labels, anchor_groups, key_groups,
                                        exclude, positive_start, negative_stop, key_weights, scale, flags},
                                       grad_loss, push, draw, lse);
}

// A sigmoid needs no bound of the similarity: the rows count as unit ones, whose norms nobody looks at.
template <class Operations>
SigmoidState sigmoid_forward(const Tensor& anchors, const Tensor& keys, const Tensor& anchor_labels,
                             const Tensor& key_labels, const Maybe& anchor_groups, const Maybe& key_groups,
                             const Maybe& exclude, int64_t positive_start, int64_t negative_stop,
                             const Maybe& key_inverse, double scale, double bias, const Maybe& learned_scale,
                             const Maybe& learned_bias, int64_t flags) {
  const Maybe unweighted;
  return Operations::sigmoid_forward(
      {anchors, keys, anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start,
       negative_stop, unweighted, scale, flags | kUnit},
      key_inverse, {bias, learned_scale, learned_bias});
}

template <class Operations>
Tensor sigmoid_backward(const Tensor& weight, const Tensor& anchors, const Tensor& keys,
                        const Tensor& anchor_labels, const Tensor& key_labels, const Maybe& anchor_groups,
                        const Maybe& key_groups, const Maybe& exclude, int64_t positive_start,
                        int64_t negative_stop, double scale, double bias, const Maybe& learned_scale,
                        const Maybe& learned_bias, int64_t flags) {
  const Maybe unweighted;
  return Operations::sigmoid_backward(
      {anchors, keys, anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start,
       negative_stop, unweighted, scale, flags | kUnit},
      weight, {bias, learned_scale, learned_bias});
}

inline SmallState info_nce(const Tensor& anchors, const Maybe& keys, const Tensor& anchor_labels,
                           const Maybe& key_labels, const Maybe& anchor_groups, const Maybe& key_groups,
                           const Maybe& exclude, const Maybe& weights, bool normalize, double scale,
                           int64_t flags, int64_t reduction) {
  return cpu::info_nce({anchors, keys, anchor_labels, key_labels, anchor_groups, key_groups, exclude, weights,
                        normalize, scale, flags, reduction});
}

inline PixelState pixel_contrast(const Tensor& features, const Tensor& labels, const Maybe& key_features,
                                 const Maybe& key_labels, const Maybe& eligible, const Maybe& key_eligible,
                                 const Maybe& scores, const Maybe& seed, const Maybe& key_seed,
                                 int64_t seed_number, int64_t key_seed_number, int64_t key_stream,
                                 int64_t per_class, int64_t num_classes, int64_t ignore_index,
                                 int64_t strategy, bool normalize, double scale, int64_t flags,
                                 int64_t reduction) {
  const PixelOptions options{per_class, num_classes, ignore_index, strategy,
                             normalize, scale,       flags,        reduction};
  const PixelSide anchors{features, labels, eligible, scores, seed, seed_number, 0};
  if (!key_features || !key_labels) return cpu::pixel_contrast(anchors, nullptr, options);
  const Maybe no_scores;
  const PixelSide keys{*key_features, *key_labels,     key_eligible, no_scores,
                       key_seed,      key_seed_number, key_stream};
  return cpu::pixel_contrast(anchors, &keys, options);
}

// Registers a device's operations, cpu::Operations or cuda::Operations.
template <class Operations, class Library>
void implement_operations(Library& m) {
  m.impl("unit_rows", TORCH_BOX(&Operations::unit_rows));
  m.impl("row_inverse", TORCH_BOX(&Operations::row_inverse));
  m.impl("unit_rows_backward", TORCH_BOX(&Operations::unit_rows_backward));
  m.impl("contrast_forward", TORCH_BOX(&contrast_forward<Operations>));
  m.impl("contrast_backward", TORCH_BOX(&contrast_backward<Operations>));
  m.impl("sigmoid_forward", TORCH_BOX(&sigmoid_forward<Operations>));
  m.impl("sigmoid_backward", TORCH_BOX(&sigmoid_backward<Operations>));
  m.impl("reduce", TORCH_BOX(&Operations::reduce));
  m.impl("gather", TORCH_BOX(&Operations::gather));
  m.impl("gather_backward", TORCH_BOX(&Operations::gather_backward));
  m.impl("sample", TORCH_BOX(&Operations::sample));
}

}  // namespace secl
