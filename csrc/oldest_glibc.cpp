// SPDX-License-Identifier: Apache-2.0
// glibc has this name from 2.32 on, and libstdc++ reads it where the build finds such a one; false is always
// right.
#include <cstdlib>

#if defined(__GLIBC__)
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
