// SPDX-License-Identifier: Apache-2.0
// Picks the widest instruction set that this machine runs.
#include "kernels.h"

#include <atomic>

#include "../checks.h"

#if defined(SECL_AMX_KERNELS)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(SECL_BFMMLA_KERNELS)
#include <sys/auxv.h>
#endif

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
#elif defined(SECL_NEON_KERNELS)
    entry[1] = &kNeonKernels;
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

// The kernels that multiply matrices of bf16: where the processor has them, and the system lends this process
// the registers of a unit of its own.
const Kernels* matrix_unit() {
#if defined(SECL_AMX_KERNELS)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool exists = available().entry[2] && __builtin_cpu_supports("avx512bf16") &&
                      __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmxBf16) && (d & kAmxTile);
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  if (exists && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return &kAmxKernels;
#elif defined(SECL_BFMMLA_KERNELS)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16
  if (getauxval(AT_HWCAP2) & kBf16) return &kBfmmlaKernels;
#endif
  return nullptr;
}

}  // namespace

const Kernels& kernels() {
  const Kernels* found = chosen.load(std::memory_order_relaxed);
  return found ? *found : *widest();
}

const Kernels& half_kernels() {
  if (chosen.load(std::memory_order_relaxed)) return kernels();
  static const Kernels* const found = matrix_unit();
  return found ? *found : kernels();
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
