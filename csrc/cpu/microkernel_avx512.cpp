// SPDX-License-Identifier: Apache-2.0
// The kernels for x86 with AVX-512 (F, DQ, VL, BW): 32 x 12 register tile, 24 of 32 registers hold sums.
#include "kernels.h"

#if defined(SECL_X86_KERNELS)
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512vl,avx512bw")
#define SECL_ISA avx512
#define SECL_LANES 16
#define SECL_COLUMNS 12
#include "microkernel.h"

namespace secl {
const Kernels kAvx512Kernels = avx512::make_kernels("avx512");
}
#endif
