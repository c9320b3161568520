// SPDX-License-Identifier: Apache-2.0
// The sweeps that each instruction set provides, and the choice among them.
#pragma once

#include <cstdint>
#include <string>

#include "job.h"
#include "small.h"

namespace secl {

constexpr int64_t kBlock = 192;  // rows of the largest block
constexpr int64_t kPanel = 96;   // columns between two value products; a multiple of every tile, both ways

// One instruction set's kernels and the shapes that data must be packed to.
struct Kernels {
  const char* name;
  int64_t lanes;    // of a vector
  int64_t tile;     // rows of a register tile, along its vectors
  int64_t columns;  // columns of a register tile
  int64_t chunk;    // numbers of a row that lie together, to which its width is padded
  // Writes a row times a factor to where the slab begins; numbers past the width are zeros.
  void (*spread)(const float* row /* [depth] */, float factor, int64_t depth, Slab to);
  // Of bf16 rows: writes them again behind a slab's rows, of which there is a multiple of `chunk`, with the
  // same number of neighbouring rows side by side.
  void (*pair)(Slab slab, int64_t rows, int64_t chunks);
  // Turns `tile` rows of a slab into a register tile's rows: element r of each number lies beside the next.
  void (*transpose)(Slab from, int64_t depth, float* to /* [depth, tile] */);
  // Divides a row by its norm and returns 1 / norm; a zero row stays, with 0.
  float (*to_unit)(float* row /* [depth] */, int64_t depth);
  // Turns the gradient of a unit row into that of the row, (g - u <u, g>) / norm; a zero gradient stays zero,
  // whatever stands in the row.
  void (*through_norm)(float* grad /* [depth] */, const float* unit /* [depth] */, float inverse,
                       int64_t depth);
  double (*square)(const float* row /* [depth] */, int64_t depth);  // of its norm
  void (*weighted_sum)(const float* a /* [depth] */, double a_weight, const float* b /* [depth] */,
                       double b_weight, int64_t depth, float* to /* [depth] */);
  void (*log_sum_exp)(const Sweep&);
  void (*positives)(const Sweep&);
  void (*gradient)(const Sweep&, bool as_anchors);  // else as keys
  void (*self_log_sum_exp)(const Sweep&);           // bounded similarities only
  void (*self_positives)(const Sweep&);
  void (*self_gradient)(const Sweep&);
  void (*sigmoid)(const Sweep&);       // rows as anchors
  void (*sigmoid_keys)(const Sweep&);  // the gradient of rows as keys
  void (*self_sigmoid)(const Sweep&);
  // Few rows; a vector is `lanes` neighbouring rows, whose gradients are added to [lanes, width].
  void (*small_pack)(const float* rows /* [tile, width] */, int64_t width, int64_t depth,
                     float* to /* [depth, tile] */);
  void (*small_tile)(const Small&, int64_t tile, SmallPass pass);
  // Where the keys are the anchors: each similarity to its other place; each coefficient plus the other one.
  void (*small_flip)(const Small&, int64_t vector);
  void (*small_mirror)(const Small&, int64_t vector);
  void (*small_anchors)(const Small&, int64_t vector, float* output);
  void (*small_keys)(const Small&, int64_t vector, float* output);
  void (*probe)(const char* function, const float* x, float* y, int64_t count);  // [count] -> [count]
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SECL_X86_KERNELS 1
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif
#if defined(SECL_X86_KERNELS) && defined(__linux__) && __GNUC__ >= 11
#define SECL_AMX_KERNELS 1
extern const Kernels kAmxKernels;  // of bf16 rows
#endif
#if defined(__aarch64__)
#define SECL_NEON_KERNELS 1
extern const Kernels kNeonKernels;
#endif
#if defined(SECL_NEON_KERNELS) && defined(__linux__) && __GNUC__ >= 10 && !defined(__clang__)
#define SECL_BFMMLA_KERNELS 1
extern const Kernels kBfmmlaKernels;  // of bf16 rows
#endif

// The kernels in use: the widest that this machine runs, unless set_isa chose others.
const Kernels& kernels();

// The same for many rows of bf16: the matrix unit or instruction where there is one, unless set_isa chose
// kernels.
const Kernels& half_kernels();

// Chooses "auto", "portable", "avx2", "avx512" or "neon" for this process; returns the name now in use.
std::string set_isa(std::string name);

}  // namespace secl
