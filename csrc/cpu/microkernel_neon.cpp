// SPDX-License-Identifier: Apache-2.0
// The kernels for AArch64, where NEON is everywhere: 8 x 8 register tile, 16 of 32 registers hold sums.
#include "kernels.h"

#if defined(SECL_NEON_KERNELS)
#define SECL_ISA neon
#define SECL_LANES 4
#define SECL_COLUMNS 8
#define SECL_BY_LANE
#include "microkernel.h"

namespace secl {
const Kernels kNeonKernels = neon::make_kernels("neon");
}
#endif
