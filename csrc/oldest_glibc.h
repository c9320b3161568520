// SPDX-License-Identifier: Apache-2.0
// Included before every source: what keeps the shared object loadable on glibc 2.28, as manylinux_2_28
// promises, where a newer one is at hand when it is built.
#pragma once

#include <cmath>

#if defined(__GLIBC__) && defined(__x86_64__)
asm(".symver exp2, exp2@GLIBC_2.2.5");  // 2.29 has others, which differ in errno alone
asm(".symver log2, log2@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
asm(".symver exp2, exp2@GLIBC_2.17");
asm(".symver log2, log2@GLIBC_2.17");
#endif
