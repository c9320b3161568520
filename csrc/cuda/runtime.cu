// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "runtime.h"

#ifndef SECL_ENTRY_POINT_BY_VERSION
#define SECL_ENTRY_POINT_BY_VERSION (CUDART_VERSION >= 12050)
#endif

namespace secl::cuda {
namespace {

using StreamQuery = int32_t (*)(int32_t device, void** stream);

StreamQuery find_stream_query() {
  constexpr const char* kSymbol = "aoti_torch_get_current_cuda_stream";
  void* found = dlsym(RTLD_DEFAULT, kSymbol);
  if (found == nullptr) {
    // A linker that drops unneeded libraries hides torch's CUDA half behind a library loaded for itself
    // alone.
    if (void* torch = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) found = dlsym(torch, kSymbol);
  }
  return reinterpret_cast<StreamQuery>(found);
}

int32_t attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check_status(cudaGetDevice(&device), "cudaGetDevice");
  check_status(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

Stream current_stream(int32_t device) {
  static const StreamQuery query = find_stream_query();
  if (query == nullptr) {
    throw std::runtime_error(
        "CUDA tensors need a torch that is built for CUDA; this one has no "
        "aoti_torch_get_current_cuda_stream: install another build of torch");
  }
  void* stream = nullptr;
  if (query(device, &stream) != 0) {
    throw std::runtime_error("torch has no current stream for CUDA device " + std::to_string(device));
  }
  return stream;
}

DeviceGuard::DeviceGuard(int32_t device) : before_(device) {
  check_status(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != device) check_status(cudaSetDevice(device), "cudaSetDevice");
}

// A failure here would follow one that has been thrown already.
DeviceGuard::~DeviceGuard() { cudaSetDevice(before_); }

int32_t multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

int32_t shared_memory_limit() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

int32_t capability() {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
}

void* driver_function(const char* name, unsigned version) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if SECL_ENTRY_POINT_BY_VERSION
  check_status(cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result),
               "cudaGetDriverEntryPointByVersion");
#else
  static_cast<void>(version);  // that of the toolkit, which is not older than what it is asked for
  check_status(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result), "cudaGetDriverEntryPoint");
#endif
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    throw std::runtime_error(std::string("the NVIDIA driver has no ") + name + "; a newer driver has it");
  }
  return found;
}

void check_status(int status, const char* what) {
  const auto error = static_cast<cudaError_t>(status);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report this one
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

}  // namespace secl::cuda
