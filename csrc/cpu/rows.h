// SPDX-License-Identifier: Apache-2.0
// Normalisation of one widened row, and its gradient: what rows and pixels have in common.
#pragma once

#include <cstdint>

#include "sides.h"

namespace secl::cpu {

// Divides a row by its norm and returns 1 / norm; a zero row stays, with 0.
float to_unit(float* row /* [D] */, int64_t depth);

// Turns the gradient of a unit row into that of the row, (g - u <u, g>) / norm; a zero gradient stays zero,
// whatever stands in the row.
void through_norm(float* grad /* [D] */, const float* unit /* [D] */, float inverse, int64_t depth);

}  // namespace secl::cpu
