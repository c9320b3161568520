// SPDX-License-Identifier: Apache-2.0
// What a launch needs of the process: torch's stream, the right device, and errors with words. Free of CUDA's
// own headers, so that code with tensors needs none.
#pragma once

#include <cstdint>

namespace secl::cuda {

using Stream = void*;  // cudaStream_t

// The stream that torch runs on for this device. Only builds of torch for CUDA have the symbol behind it: it
// is looked up when first needed, so that one shared object serves every torch.
Stream current_stream(int32_t device);

// Makes a device current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

// Number of multiprocessors of the current device.
int32_t multiprocessors();

// Bytes of shared memory that one block of the current device may ask for.
int32_t shared_memory_limit();

// Compute capability of the current device, such as 90.
int32_t capability();

// A function of the driver, such as cuTensorMapEncodeTiled: found by name, so that nothing links to the
// driver.
void* driver_function(const char* name, unsigned version /* CUDA's that brought it, such as 12000 */);

// Throws for any CUDA status but success, with its name and what it means.
void check_status(int status /* cudaError_t */, const char* what);

}  // namespace secl::cuda
