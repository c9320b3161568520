// SPDX-License-Identifier: Apache-2.0
// How a draw is spread over blocks, decided by sizes alone, and what its launches leave for one another:
//
//   aim    hard draws: a score for each class that about as many lie below as will be drawn
//   count  each chunk of each image counts its members of each class at each level of their keys
//   plan   the counts say from which level on a chunk lists the members of a class, and where
//   list   each chunk lists them, so that every class has a short list in the order of the pixels
//   draw   a block for each class, image and cell takes the smallest keys of its list
//
// An image of few pixels is read by the blocks that draw from it, and so is one whose list would overflow.
#pragma once

#include <cstdint>

#include "../../random.h"
#include "../kernels.h"

namespace secl::cuda::sampling {

constexpr int kThreads = 512;  // of every block; one for each chunk of an image where they plan
// Blocks of a multiprocessor in the passes, one elsewhere: asked for more or for nothing, the compiler keeps
// registers in memory on some chip.
constexpr int kResident = 2;
constexpr int kItems = 4,  // labels that a thread has under way at once
    kTile = kThreads * kItems;
constexpr int kWhole = 4096;   // pixels that a block reads itself: reading them costs as much as the launches
constexpr int kChunk = 2048;   // the fewest pixels of a chunk
constexpr int kBlocks = 1024;  // of one pass: a few waves, so that the last one costs little
constexpr int kLevels = 16;    // of chances, all being the first: the last holds 2^-15 of all pixels
constexpr int kAll = 0, kAtAim = 1, kBelowAim = 2, kScoreLevels = 3;  // levels of scores
constexpr int kGroup = 512;   // classes of one scan: their counts fit into 48 KiB
constexpr int kSpots = 4096;  // pixels among which a low score is looked for
static_assert(kGroup * (kLevels + kScoreLevels - 1) * sizeof(int32_t) <= 48 << 10, "shared without asking");
static_assert(kSpots <= kWhole, "each spot has pixels of its own");

enum Kind { kChance, kScore, kKinds };

// Where one chunk lists its members of one class: from this place on those of this level or deeper; the first
// `ties` alone of those whose score is the aim.
struct alignas(16) Run {
  int32_t first, level, ties;
};
constexpr int32_t kNoLevel = 0x7FFFFFFF;

// What the block of one class, image and cell draws: so many from this place on, out of its part of the list.
struct alignas(16) Lot {
  int32_t first, listed;  // the latter below 0: the list overflows, the cell itself is read
  int32_t begin, drawn;
};

struct Plan {
  Sample job;
  int32_t chunks;            // of each cell
  int32_t levels;            // of chances that are counted apart; 1 where nothing is listed
  int32_t aimed;             // which lowest score of the spots is the aim
  int32_t capacity[kKinds];  // of the list of one class of one image; 0: none
  Lot* lots[kKinds];         // [C, B, cells]; null where a block reads its image without asking
  Run* runs[kKinds];         // [B, units, C]; null where nothing is listed
  int32_t* counts;           // [C, B, rows, units]
  uint32_t* aims;            // [C, B] keys of scores
  int32_t* lists[kKinds];    // [C, B, capacity]
  // 32-bit numbers behind all of these: less than 5 bytes for a pixel and kind, 24 for a place of the draw
  // and, for a class of an image, 512 + 128 for each cell + one for 4096 pixels.
  int64_t scratch;

  SECL_INLINE int units() const { return job.cells() * chunks; }
  SECL_INLINE int64_t parts() const { return job.num_classes * job.images; }
  SECL_INLINE int64_t part_of(int64_t of_class, int64_t image) const { return of_class * job.images + image; }
  SECL_INLINE int kinds() const { return job.hard ? 2 : 1; }
  // Rows of counts: each level of the chances or deeper, then the upper levels of the scores.
  SECL_INLINE int rows() const { return levels + (job.hard ? kScoreLevels - 1 : 0); }
  SECL_INLINE int levels_of(int kind) const { return kind == kScore ? kScoreLevels : levels; }
  SECL_INLINE int row_of(int kind, int level) const {
    return kind == kScore && level > 0 ? levels + level - 1 : level;
  }
  SECL_INLINE int32_t* counts_of(int64_t part, int row) const {
    return counts + (part * rows() + row) * units();
  }
};

Plan plan_sample(const Sample& job);

void launch_aim(const Plan& plan, Stream stream);
void launch_count(const Plan& plan, Stream stream);
void launch_plan(const Plan& plan, Stream stream);
void launch_list(const Plan& plan, Stream stream);
void launch_draw(const Plan& plan, Stream stream);

// Calls body with a zero of the type of the labels.
template <class Body>
void with_label(const Sample& job, const Body& body) {
  switch (job.label_bytes) {
    case 1:
      return body(uint8_t{});
    case 4:
      return body(int32_t{});
    default:
      return body(int64_t{});
  }
}

}  // namespace secl::cuda::sampling
