// SPDX-License-Identifier: Apache-2.0
// A block finds the k smallest of the keys of a source from the top digit down: the counts of a digit say in
// which bin the k-th lies.
#pragma once

#include "ranks.cuh"

namespace secl::cuda::sampling {

constexpr int kDigit = 12, kBins = 1 << kDigit, kKeyBits = 3 * kDigit;
static_assert(kRandomBits <= kKeyBits, "a key is as long as its digits");
constexpr int32_t kEveryPixel = 0x7FFFFFFF;

struct Scratch {
  int32_t list[kWhole];  // members that the block lists itself
  int32_t bins[kBins];
  uint32_t sums[kWarps];
  int32_t place, below, at, last;
};

// Lists the members, as far as the list goes; their number.
template <class Source>
__device__ __forceinline__ int list_members(const Source& source, Scratch& scratch) {
  const auto all = [](int32_t, int32_t) { return kBelow; };
  int count = 0;
  for (int start = 0; start < source.length(); start += kTile) {
    count += rank_tile(source, start, all, scratch.sums, [&](uint32_t, uint32_t before, int32_t pixel) {
      if (count + before < kWhole) scratch.list[count + before] = pixel;
    });
  }
  sync_block();
  return count;
}

// Where a selection ends: all keys whose high bits are below `key`, and the first `ties` at it, up to a
// pixel.
struct Threshold {
  uint64_t key;
  int shift, ties;
  int32_t last;
  __device__ bool takes(uint64_t other, int32_t pixel) const {
    return other >> shift < key || (other >> shift == key && pixel <= last);
  }
};

// In which bin of one digit the `need`-th key lies, or the last one where there are fewer: scratch gets that
// place, the keys below it and those at it; how many are needed of the latter.
__device__ __forceinline__ int find_bin(int need, Scratch& scratch) {
  constexpr int kOwn = kBins / kThreads;
  const int first = static_cast<int>(threadIdx.x) * kOwn;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sum += scratch.bins[first + i];
  if (threadIdx.x == 0) scratch.place = scratch.below = scratch.at = 0;  // should there be none
  const Scan scan = scan_block(sum, scratch.sums);
  need = min(need, static_cast<int>(scan.total));
  int before = static_cast<int>(scan.before);
  if (before < need && need <= before + sum) {
    int place = first;
    for (; before + scratch.bins[place] < need; ++place) before += scratch.bins[place];
    scratch.place = place;
    scratch.below = before;
    scratch.at = scratch.bins[place];
  }
  sync_block();
  return need - scratch.below;
}

// Where the `need` smallest keys among those that are free end. `exact`: at one key, even where a coarser
// bound would part those of the source as well.
template <class Source, class Key, class Free>
__device__ __forceinline__ Threshold find_smallest(const Source& source, const Key& key, const Free& free,
                                                   int need, bool exact, Scratch& scratch) {
  Threshold end{0, kKeyBits, need, -1};
  int at = 0x7FFFFFFF;
  while ((exact || at > end.ties) && end.shift > 0) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) scratch.bins[bin] = 0;
    sync_block();
    const int low = end.shift - kDigit;
    each(source, [&](int32_t pixel, int32_t) {
      const uint64_t value = key(pixel);
      if (value >> end.shift == end.key && free(pixel))
        add_count(&scratch.bins[value >> low & (kBins - 1)], 1);
    });
    sync_block();
    end.ties = find_bin(end.ties, scratch);
    at = scratch.at;
    end.key = end.key << kDigit | static_cast<uint64_t>(scratch.place);
    end.shift = low;
  }
  return end;
}

// Puts the `need` smallest keys among those that are free, of which there are as many, in the order of the
// source: put(place, pixel).
template <class Source, class Key, class Free, class Put>
__device__ __forceinline__ Threshold take_smallest(const Source& source, const Key& key, const Free& free,
                                                   int need, bool exact, Scratch& scratch, const Put& put) {
  if (need <= 0) return {0, kKeyBits, 0, -1};
  Threshold end = find_smallest(source, key, free, need, exact, scratch);
  if (threadIdx.x == 0) scratch.last = kEveryPixel;
  sync_block();
  const auto kind = [&](int32_t pixel, int32_t) {
    const uint64_t high = key(pixel) >> end.shift;
    return high > end.key || !free(pixel) ? kOutside : high < end.key ? kBelow : kTie;
  };
  int below = 0, tied = 0;
  for (int start = 0; start < source.length(); start += kTile) {
    const auto put_ranked = [&](uint32_t kind, uint32_t counts, int32_t pixel) {
      const int my_below = below + static_cast<int>(counts % kTie),
                my_tied = tied + static_cast<int>(counts / kTie);
      if (kind == kBelow || my_tied < end.ties) put(my_below + min(my_tied, end.ties), pixel);
      if (kind == kTie && my_tied + 1 == end.ties) scratch.last = pixel;
    };
    const uint32_t total = rank_tile(source, start, kind, scratch.sums, put_ranked);
    below += static_cast<int>(total % kTie);
    tied += static_cast<int>(total / kTie);
  }
  sync_block();
  end.last = scratch.last;
  return end;
}

}  // namespace secl::cuda::sampling
