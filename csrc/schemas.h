// SPDX-License-Identifier: Apache-2.0
// Every operation's schema, once for all devices.
#pragma once

namespace secl {

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
      "Tensor? key_inverse, Tensor? known_lse, float scale, int flags) "
      "-> (Tensor loss, Tensor lse, Tensor pull, Tensor count, Tensor grad_anchors)");
  m.def(
      "contrast_backward(Tensor grad_loss, Tensor push, Tensor draw, Tensor anchors, Tensor keys, Tensor "
      "anchor_labels, Tensor key_labels, Tensor? anchor_groups, Tensor? key_groups, Tensor? exclude, int "
      "positive_start, int negative_stop, Tensor lse, float scale, int flags) "
      "-> (Tensor grad_anchors, Tensor grad_keys)");
  m.def(
      "reduce(Tensor loss, Tensor pull, Tensor count, Tensor? weights, str reduction) -> (Tensor value, "
      "Tensor "
      "factor, Tensor push, Tensor draw)");
  m.def("gather(Tensor features, Tensor index, Tensor(a!) rows, Tensor(b!)? inverse) -> ()");
  m.def(
      "gather_backward(Tensor grad, Tensor? factor, Tensor? upstream, Tensor index, Tensor? unit, Tensor? "
      "inverse, bool unique, Tensor(a!) result) -> ()");
  m.def(
      "sample(Tensor labels, Tensor? eligible, Tensor? scores, Tensor seed, int per_class, int num_classes, "
      "int ignore_index, str strategy, int stream) -> (Tensor index, Tensor label)");
}

}  // namespace secl
