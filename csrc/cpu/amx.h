// SPDX-License-Identifier: Apache-2.0
// The products of bf16 rows on AMX, the matrix unit of Intel's server processors: 16 x 16 sums of 32 products
// each an instruction, accumulated in float32.
//
// A slab holds its rows twice: [chunks, capacity, 32 halves] as they lie, and [chunks, capacity, 16 pairs],
// where rows 2p and 2p + 1 are interleaved: their first 16 halves at place 2p, their last 16 at place 2p + 1.
// A chunk is 32 halves, as many bytes as a vector of 16 floats, so that offsets count as in a slab of floats.

#include <immintrin.h>

#include "kernels.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

constexpr int64_t kHalves = 32;  // of a row in one tile
constexpr int64_t kRowBytes = 64;
static_assert(kLanes == 16 && kColumns == 16 && kTile == 32, "a tile register is 16 rows of 64 bytes");
static_assert(kPanel % kHalves == 0 && kBlock % kHalves == 0);

// The intrinsics do not tell the compiler that they read and write memory.
SECL_INLINE void fence() { __asm__ volatile("" ::: "memory"); }

// All eight tile registers of this thread, 16 rows of 64 bytes each; given back at the end.
class Registers {
 public:
  Registers() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    fence();
    _tile_loadconfig(&config);
  }
  ~Registers() { _tile_release(); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;
};

SECL_INLINE __m512i to_halves(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// One row times a factor, as halves; numbers past the width are zeros.
inline void spread_halves(const float* row /* [depth] */, float factor, int64_t depth, Slab to) {
  const __m512 scale = _mm512_set1_ps(factor);
  for (; depth > 0; depth -= kHalves, row += kHalves, to.data += to.step) {
    const int64_t size = depth < kHalves ? depth : kHalves;
    const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << size) - 1);
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), row);
    const __m512 high =
        size > 16 ? _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), row + 16) : _mm512_setzero_ps();
    _mm512_storeu_si512(to.data, to_halves(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)));
  }
}

// Writes the pairs of rows behind the rows themselves.
inline void pair_rows(Slab slab, int64_t rows, int64_t chunks) {
  alignas(64) uint16_t first[32], last[32];
  for (int k = 0; k < 32; ++k) {
    first[k] = static_cast<uint16_t>(k / 2 + (k % 2) * 32);
    last[k] = static_cast<uint16_t>(first[k] + 16);
  }
  const __m512i of_first = _mm512_load_si512(first), of_last = _mm512_load_si512(last);
  for (int64_t c = 0; c < chunks; ++c) {
    const float* from = slab.data + c * slab.step;
    float* to = slab.data + (chunks + c) * slab.step;
    for (int64_t row = 0; row < rows; row += 2) {
      const __m512i upper = _mm512_loadu_si512(from + row * kLanes),
                    lower = _mm512_loadu_si512(from + (row + 1) * kLanes);
      _mm512_storeu_si512(to + row * kLanes, _mm512_permutex2var_epi16(upper, of_first, lower));
      _mm512_storeu_si512(to + (row + 1) * kLanes, _mm512_permutex2var_epi16(upper, of_last, lower));
    }
  }
}

// Similarity tile of kTile rows, along the vectors, and kColumns columns.
inline void dot(const float* rows /* [pairs, kTile] */, const Slab columns, int64_t depth,
                float* tile /* [kColumns, kBlock] */) {
  fence();
  _tile_zero(0);
  _tile_zero(1);
  const float* chunk = columns.data;
  for (; depth > 0; depth -= kHalves, chunk += columns.step, rows += kHalves / 2 * kTile) {
    _tile_loadd(2, chunk, kRowBytes);
    _tile_loadd(3, rows, kTile * sizeof(float));
    _tile_loadd(4, rows + kLanes, kTile * sizeof(float));
    _tile_dpbf16ps(0, 2, 3);
    _tile_dpbf16ps(1, 2, 4);
  }
  _tile_stored(0, tile, kBlock * sizeof(float));
  _tile_stored(1, tile + kLanes, kBlock * sizeof(float));
  fence();
}

// Coefficients of 16 outputs as halves, [groups, 16 outputs, 32 values].
struct alignas(64) Factors {
  uint16_t halves[kBlock / kHalves][16][kHalves];
};

// Of 16 rows, over `count` columns of the panel.
inline void take_rows(const float* coefficients /* [panel, kBlock] */, int64_t count, Factors& to) {
  for (int64_t j = 0; j < count; j += kHalves) {
    Float low[kLanes], high[kLanes];
    for (int k = 0; k < kLanes; ++k) {
      low[k] = j + k < count ? load(coefficients + (j + k) * kBlock) : Float{};
      high[k] = j + kLanes + k < count ? load(coefficients + (j + kLanes + k) * kBlock) : Float{};
    }
    transpose_square(low);
    transpose_square(high);
    for (int r = 0; r < kLanes; ++r)
      _mm512_store_si512(to.halves[j / kHalves][r], to_halves((__m512)low[r], (__m512)high[r]));
  }
}

// Of 16 columns, over `count` rows of the block, a multiple of 32.
inline void take_columns(const float* coefficients /* [panel, kBlock] */, int64_t count, Factors& to) {
  for (int64_t i = 0; i < count; i += kHalves) {
    for (int c = 0; c < kLanes; ++c) {
      const float* from = coefficients + c * kBlock + i;
      _mm512_store_si512(to.halves[i / kHalves][c],
                         to_halves(_mm512_loadu_ps(from), _mm512_loadu_ps(from + kLanes)));
    }
  }
}

// output += factors @ values for 16 outputs; the values are the pairs of a slab.
inline void accumulate(const Factors& factors, const Slab pairs, int64_t count, const Slab output,
                       int64_t chunks) {
  fence();
  for (int64_t c = 0; c < chunks; ++c) {
    float *first = output.data + 2 * c * output.step, *last = first + output.step;
    const float* values = pairs.data + c * pairs.step;
    _tile_loadd(0, first, kRowBytes);
    _tile_loadd(1, last, kRowBytes);
    for (int64_t k = 0; k < count; k += kHalves, values += kHalves * kLanes) {
      _tile_loadd(2, factors.halves[k / kHalves], kRowBytes);
      _tile_loadd(3, values, 2 * kRowBytes);
      _tile_loadd(4, values + kLanes, 2 * kRowBytes);
      _tile_dpbf16ps(0, 2, 3);
      _tile_dpbf16ps(1, 2, 4);
    }
    _tile_stored(0, first, kRowBytes);
    _tile_stored(1, last, kRowBytes);
  }
  fence();
}

SECL_INLINE Slab pairs_of(Slab rows, int64_t chunks, int64_t first) {
  return {rows.data + chunks * rows.step + first * kLanes, rows.step};
}

// The value products of one panel: of its columns for the rows, and of the rows for its columns.
inline void multiply(const Sweep& s, const Box& box, int64_t column) {
  const int64_t chunks = s.chunks / 2;
  Factors factors;
  if (s.output.data) {
    const int64_t first = box.column_begin / kHalves * kHalves, count = box.column_end - first;
    const Slab pairs = pairs_of(s.values, chunks, column + first);
    for (int64_t row = box.row_begin; row < box.row_end; row += kLanes) {
      take_rows(s.coefficients + first * kBlock + row, count, factors);
      accumulate(factors, pairs, count, offset(s.output, row), chunks);
    }
  }
  if (s.column_output.data) {
    const int64_t count = box.row_end - box.row_begin;
    const Slab pairs = pairs_of(s.row_values, chunks, box.row_begin);
    for (int64_t c = box.column_begin; c < box.column_end; c += kLanes) {
      take_columns(s.coefficients + c * kBlock + box.row_begin, count, factors);
      accumulate(factors, pairs, count, offset(s.column_output, column + c), chunks);
    }
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
