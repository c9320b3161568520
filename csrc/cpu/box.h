// SPDX-License-Identifier: Apache-2.0
// Where in a slab, and in a panel of coefficients, a product takes place.

#include "kernels.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

SECL_INLINE Slab offset(Slab slab, int64_t rows, int64_t vectors = 0) {
  return {slab.data + rows * kLanes + vectors * slab.step, slab.step};
}

// The smallest rectangle around the visited tiles of a panel.
struct Box {
  int64_t row_begin = kBlock, row_end = 0, column_begin = kPanel, column_end = 0;
  void add(int64_t row, int64_t column) {
    row_begin = row < row_begin ? row : row_begin;
    row_end = row + kTile > row_end ? row + kTile : row_end;
    column_begin = column < column_begin ? column : column_begin;
    column_end = column + kColumns > column_end ? column + kColumns : column_end;
  }
  bool empty() const { return row_end == 0; }
};

}  // namespace
}  // namespace secl::SECL_ISA
