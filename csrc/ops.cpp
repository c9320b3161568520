// SPDX-License-Identifier: Apache-2.0
// The extension over the stable ABI: the operations with their CPU implementations, and what it tells of
// itself; the implementations on CUDA devices stand in cuda/ops.cpp.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "checks.h"
#include "cpu/kernels.h"
#include "operations.h"
#include "secl_build.h"  // written by setup.py

namespace {

// The architectures that this build has CUDA code for, such as "80+PTX;90a"; empty without a CUDA half.
std::string cuda_archs() { return SECL_CUDA_ARCHS; }

// Why this build has no CUDA half; empty where it has one.
std::string cuda_absence() { return SECL_CUDA_ABSENCE; }

// What this build takes the operations to be; secl_ops/library.py knows what they are.
std::string interface() { return SECL_INTERFACE; }

// Whether many rows of bf16 are multiplied on a matrix unit; no string, which torch's stable ABI leaks.
bool matrix_unit() { return secl::half_kernels().pair != nullptr; }

// One function of the kernels at each number.
secl::Tensor probe(const secl::Tensor& x /* [n] float32 */, std::string function) {
  secl::check_dense("x", x, 1);
  secl::check_type("x", x, secl::ScalarType::Float);
  secl::Tensor y = torch::stable::empty_like(x);
  secl::kernels().probe(function.c_str(), x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), x.size(0));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY(secl_native, m) {
  secl::define_operations(m);
  m.def("probe(Tensor x, str function) -> Tensor");
  m.def("set_isa(str name) -> str");
  m.def("matrix_unit() -> bool");
  m.def("cuda_archs() -> str");
  m.def("cuda_absence() -> str");
  m.def("interface() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(secl_native, CPU, m) {
  secl::implement_operations<secl::cpu::Operations>(m);
  m.impl("info_nce", TORCH_BOX(&secl::info_nce));
  m.impl("pixel_contrast", TORCH_BOX(&secl::pixel_contrast));
  m.impl("small_backward", TORCH_BOX(&secl::cpu::small_backward));
  m.impl("probe", TORCH_BOX(&probe));
}

STABLE_TORCH_LIBRARY_IMPL(secl_native, CompositeExplicitAutograd, m) {
  m.impl("set_isa", TORCH_BOX(&secl::set_isa));
  m.impl("matrix_unit", TORCH_BOX(&matrix_unit));
  m.impl("cuda_archs", TORCH_BOX(&cuda_archs));
  m.impl("cuda_absence", TORCH_BOX(&cuda_absence));
  m.impl("interface", TORCH_BOX(&interface));
}

// Only so that Python's import machinery accepts the file; loading it has registered the operations already.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
