// SPDX-License-Identifier: Apache-2.0
// The kernels for any machine: vectors of four floats, which every 64-bit target has.
#define SECL_ISA portable
#define SECL_LANES 4
#define SECL_ROWS 6
#define SECL_PANEL_STRIPS 30
#include "microkernel.h"

namespace secl {
const Kernels kPortableKernels = portable::make_kernels("portable");
}
