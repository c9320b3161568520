// SPDX-License-Identifier: Apache-2.0
// The table of contents of the native side: every operation's schema and its CPU implementation, over the
// stable ABI.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"
#include "cpu/operations.h"

STABLE_TORCH_LIBRARY(secl_native, m) {
  m.def("unit_rows(Tensor rows, Tensor labels) -> (Tensor unit, Tensor inverse)");
  m.def("row_inverse(Tensor rows, Tensor labels) -> Tensor");
  m.def("unit_rows_backward(Tensor grad, Tensor unit, Tensor inverse) -> Tensor");
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
  m.def("gather(Tensor features, Tensor index, Tensor(a!) rows, Tensor(b!)? inverse) -> ()");
  m.def(
      "gather_backward(Tensor grad, Tensor index, Tensor? unit, Tensor? inverse, bool unique, Tensor(a!) "
      "result) "
      "-> ()");
  m.def(
      "sample(Tensor labels, Tensor? eligible, Tensor? scores, Tensor seed, int per_class, int num_classes, "
      "int ignore_index, str strategy) -> (Tensor index, Tensor label)");
  m.def("probe(Tensor x, str function) -> Tensor");
  m.def("set_isa(str name) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(secl_native, CPU, m) {
  m.impl("unit_rows", TORCH_BOX(&secl::cpu::unit_rows));
  m.impl("row_inverse", TORCH_BOX(&secl::cpu::row_inverse));
  m.impl("unit_rows_backward", TORCH_BOX(&secl::cpu::unit_rows_backward));
  m.impl("contrast_forward", TORCH_BOX(&secl::cpu::contrast_forward));
  m.impl("contrast_backward", TORCH_BOX(&secl::cpu::contrast_backward));
  m.impl("gather", TORCH_BOX(&secl::cpu::gather));
  m.impl("gather_backward", TORCH_BOX(&secl::cpu::gather_backward));
  m.impl("sample", TORCH_BOX(&secl::cpu::sample));
  m.impl("probe", TORCH_BOX(&secl::cpu::probe));
}

STABLE_TORCH_LIBRARY_IMPL(secl_native, CompositeExplicitAutograd, m) {
  m.impl("set_isa", TORCH_BOX(&secl::set_isa));
}

// Only so that Python's import machinery accepts the file; loading it has registered the operations already.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
