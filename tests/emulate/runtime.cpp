// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/runtime.h on the emulated GPU.
#include "cuda/runtime.h"

#include <stdexcept>
#include <string>

#include "machine.h"

namespace secl::cuda {

Stream current_stream(int32_t) { return nullptr; }

DeviceGuard::DeviceGuard(int32_t device) : before_(device) {}
DeviceGuard::~DeviceGuard() = default;

int32_t multiprocessors() { return emulate::machine().multiprocessors; }
int32_t shared_memory_limit() { return emulate::machine().shared_memory_limit; }
int32_t capability() { return emulate::machine().capability; }

void* driver_function(const char* name, unsigned) {
  throw std::runtime_error(std::string("the emulated GPU has no driver, and so no ") + name);
}

void check_status(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string(what) + " failed");
}

}  // namespace secl::cuda
