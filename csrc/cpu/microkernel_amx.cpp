// SPDX-License-Identifier: Apache-2.0
// The kernels for bf16 rows on x86 with AMX beside AVX-512: 32 x 16 similarities from two tile registers.
#include "kernels.h"

#if defined(SECL_AMX_KERNELS)
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,amx-tile,amx-bf16")
#define SECL_ISA amx
#define SECL_AMX
#define SECL_LANES 16
#define SECL_COLUMNS 16
#include "microkernel.h"

namespace secl {
const Kernels kAmxKernels = amx::make_kernels("amx");
}
#endif
