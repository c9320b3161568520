// SPDX-License-Identifier: Apache-2.0
// The kernels for bf16 rows on AArch64 with BF16: 8 x 8 similarities, 16 of 32 registers hold sums.
#include "kernels.h"

#if defined(SECL_BFMMLA_KERNELS)
#pragma GCC target("arch=armv8.2-a+bf16")
#define SECL_ISA bfmmla
#define SECL_BFMMLA
#define SECL_LANES 4
#define SECL_COLUMNS 8
#include "microkernel.h"

namespace secl {
const Kernels kBfmmlaKernels = bfmmla::make_kernels("bfmmla");
}
#endif
