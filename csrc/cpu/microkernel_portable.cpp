// SPDX-License-Identifier: Apache-2.0
// The kernels for any machine: vectors of four floats, which every 64-bit target has.
#include "kernels.h"

#define SECL_ISA portable
#define SECL_LANES 4
#define SECL_COLUMNS 6
#include "microkernel.h"

namespace secl {
const Kernels kPortableKernels = portable::make_kernels("portable");
}
