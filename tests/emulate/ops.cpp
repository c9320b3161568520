// SPDX-License-Identifier: Apache-2.0
// The CUDA operations as operations on CPU tensors, under a name of their own, and what tests tell the
// emulated GPU.
#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/kernels.h"
#include "machine.h"
#include "operations.h"
#include "probes.h"

namespace {

void set_reversed(bool reversed) { secl::emulate::machine().reversed = reversed; }

void set_multiprocessors(int64_t count) {
  secl::emulate::machine().multiprocessors = static_cast<int32_t>(count);
}

void set_capability(int64_t capability) {
  secl::emulate::machine().capability = static_cast<int32_t>(capability);
}

void set_shared_memory_limit(int64_t bytes) {
  secl::emulate::machine().shared_memory_limit = static_cast<int32_t>(bytes);
}

// Since the last time that it was asked.
int64_t most_copies() { return std::exchange(secl::emulate::machine().most_copies, 0); }

int64_t bytes_read() { return secl::emulate::machine().bytes_read; }

// Numbers of 32 bits that a draw from images of these sizes keeps between its launches.
int64_t sample_scratch(int64_t images, std::vector<int64_t> spatial, int64_t num_classes, int64_t per_class,
                       int64_t strategy) {
  secl::cuda::Sample job = {};
  job.images = images;
  job.num_classes = num_classes;
  job.per_class = per_class;
  job.axes = static_cast<int32_t>(spatial.size());
  std::fill(job.size, job.size + 3, 1);
  std::copy(spatial.begin(), spatial.end(), job.size + 3 - job.axes);
  job.stratified = strategy == secl::kStratified;
  job.hard = strategy == secl::kHard;
  return secl::cuda::sample_scratch(job);
}

int64_t launches() { return static_cast<int64_t>(secl::emulate::machine().launches); }

}  // namespace

STABLE_TORCH_LIBRARY(secl_emulated, m) {
  secl::define_operations(m);
  m.def("set_reversed(bool reversed) -> ()");
  m.def("set_multiprocessors(int count) -> ()");
  m.def("set_capability(int capability) -> ()");
  m.def("set_shared_memory_limit(int bytes) -> ()");
  m.def("launches() -> int");
  m.def("bytes_read() -> int");
  m.def("sample_scratch(int images, int[] spatial, int num_classes, int per_class, int strategy) -> int");
  m.def("most_copies() -> int");
  m.def("probe(str name) -> ()");
  m.def("product(Tensor left, Tensor right, bool transposed) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(secl_emulated, CPU, m) {
  secl::implement_operations<secl::cuda::Operations>(m);
  m.impl("product", TORCH_BOX(&secl::emulate::product));
}

STABLE_TORCH_LIBRARY_IMPL(secl_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_reversed", TORCH_BOX(&set_reversed));
  m.impl("set_multiprocessors", TORCH_BOX(&set_multiprocessors));
  m.impl("set_capability", TORCH_BOX(&set_capability));
  m.impl("set_shared_memory_limit", TORCH_BOX(&set_shared_memory_limit));
  m.impl("launches", TORCH_BOX(&launches));
  m.impl("bytes_read", TORCH_BOX(&bytes_read));
  m.impl("sample_scratch", TORCH_BOX(&sample_scratch));
  m.impl("most_copies", TORCH_BOX(&most_copies));
  m.impl("probe", TORCH_BOX(&secl::emulate::probe));
}
