// SPDX-License-Identifier: Apache-2.0
// Picks the widest instruction set that this machine runs.
#include "kernels.h"

#include <atomic>

#include "../checks.h"

namespace secl {
namespace {

// [0] is the portable one; a null entry cannot run here.
struct Available {
  const Kernels* entry[3] = {&kPortableKernels, nullptr, nullptr};
  Available() {
#if defined(SECL_X86_KERNELS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) entry[1] = &kAvx2Kernels;
    if (entry[1] && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
      entry[2] = &kAvx512Kernels;
    }
#endif
  }
};

const Available& available() {
  static const Available found;
  return found;
}

const Kernels* widest() {
  const Kernels* found = nullptr;
  for (const Kernels* entry : available().entry) found = entry ? entry : found;
  return found;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* found = chosen.load(std::memory_order_relaxed);
  return found ? *found : *widest();
}

std::string set_isa(std::string name) {
  const Kernels* found = nullptr;
  for (const Kernels* entry : available().entry) {
    if (entry && name == entry->name) found = entry;
  }
  STD_TORCH_CHECK(found || name == "auto", "isa must be 'auto' or one that this machine runs; got '", name,
                  "'; the widest here is '", widest()->name, "'");
  chosen.store(found, std::memory_order_relaxed);
  return kernels().name;
}

}  // namespace secl
