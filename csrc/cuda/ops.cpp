// SPDX-License-Identifier: Apache-2.0
// The operations on CUDA devices.
#include "../operations.h"

STABLE_TORCH_LIBRARY_IMPL(secl_native, CUDA, m) { secl::implement_operations<secl::cuda::Operations>(m); }
