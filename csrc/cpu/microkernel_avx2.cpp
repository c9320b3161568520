// SPDX-License-Identifier: Apache-2.0
// The kernels for x86 with AVX2 and FMA: 16 x 6 register tile, 12 of 16 registers hold sums.
#include "kernels.h"

#if defined(SECL_X86_KERNELS)
#pragma GCC target("avx2,fma")
#define SECL_ISA avx2
#define SECL_LANES 8
#define SECL_COLUMNS 6
#include "microkernel.h"

namespace secl {
const Kernels kAvx2Kernels = avx2::make_kernels("avx2");
}
#endif
