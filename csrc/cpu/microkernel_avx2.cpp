// SPDX-License-Identifier: Apache-2.0
// The kernels for x86 with AVX2 and FMA: 6 x 16 register tile, 12 of 16 registers hold sums.
#include "kernels.h"

#if defined(SECL_X86_KERNELS)
#pragma GCC target("avx2,fma")
#define SECL_ISA avx2
#define SECL_LANES 8
#define SECL_ROWS 6
#define SECL_PANEL_STRIPS 15
#include "microkernel.h"

namespace secl {
const Kernels kAvx2Kernels = avx2::make_kernels("avx2");
}
#endif
