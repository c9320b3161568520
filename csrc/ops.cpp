// SPDX-License-Identifier: Apache-2.0
// The table of contents of the native side: the operations and their CPU implementations, over the stable
// ABI; those on CUDA devices stand in cuda/ops.cpp.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/kernels.h"
#include "cpu/operations.h"
#include "schemas.h"
#include "secl_build.h"  // written by setup.py

namespace {

// The architectures that this build has CUDA code for, such as "80+PTX;90a"; empty without a CUDA half.
std::string cuda_archs() { return SECL_CUDA_ARCHS; }

// Why this build has no CUDA half; empty where it has one.
std::string cuda_absence() { return SECL_CUDA_ABSENCE; }

}  // namespace

STABLE_TORCH_LIBRARY(secl_native, m) {
  secl::define_operations(m);
  m.def("probe(Tensor x, str function) -> Tensor");
  m.def("set_isa(str name) -> str");
  m.def("cuda_archs() -> str");
  m.def("cuda_absence() -> str");
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
  m.impl("cuda_archs", TORCH_BOX(&cuda_archs));
  m.impl("cuda_absence", TORCH_BOX(&cuda_absence));
}

// Only so that Python's import machinery accepts the file; loading it has registered the operations already.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
