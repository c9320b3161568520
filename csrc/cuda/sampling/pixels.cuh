// SPDX-License-Identifier: Apache-2.0
// Which pixels a block reads, a tile at a time: those of a chunk, of some spots, or of a list.
#pragma once

#include "keys.cuh"

namespace secl::cuda::sampling {

// A cell of an image: the pixels with coordinates from low on, of these sizes, in ascending order.
class Box {
 public:
  // The coordinates x of a cell: floor(x * cells / size) = cell.
  __device__ Box(const Sample& job, int cell) : job_(job), whole_(job.cells() == 1) {
    for (int axis = 2; axis >= 0; --axis) {
      const int cells = job.cells_along(axis), at = cell % cells;
      const int64_t size = job.size[axis];
      low_[axis] = static_cast<int32_t>((at * size + cells - 1) / cells);
      size_[axis] = static_cast<int32_t>(((at + 1) * size + cells - 1) / cells) - low_[axis];
      cell /= cells;
    }
  }
  __device__ int length() const { return size_[0] * size_[1] * size_[2]; }
  __device__ int32_t pixel(int place) const {
    if (whole_) return place;
    const int line = place / size_[2], plane = line / size_[1];
    const int y = low_[1] + line - plane * size_[1], z = low_[0] + plane;
    return (z * job_.size[1] + y) * job_.size[2] + low_[2] + place - line * size_[2];
  }

 private:
  const Sample& job_;
  const bool whole_;
  int32_t low_[3], size_[3];
};

// A share of a box, of as many as there are chunks.
class Chunk {
 public:
  __device__ Chunk(const Box& box, int chunk, int chunks) : box_(box) {
    const int length = box.length(), share = (length + chunks - 1) / chunks;
    first_ = min(chunk * share, length);
    length_ = min(first_ + share, length) - first_;
  }
  __device__ explicit Chunk(const Box& box) : Chunk(box, 0, 1) {}
  __device__ int length() const { return length_; }
  __device__ int32_t pixel(int place) const { return box_.pixel(first_ + place); }

 private:
  const Box& box_;
  int first_, length_;
};

// Pixels of an image at random, one out of each of as many parts.
class Spots {
 public:
  __device__ Spots(const Sample& job, int64_t part)
      : hashed_(mix(mix(seed_of(job)) + static_cast<uint64_t>(part))), share_(job.pixels() / kSpots) {}
  __device__ int length() const { return kSpots; }
  __device__ int32_t pixel(int place) const {
    return static_cast<int32_t>(place * share_ + ((mix(hashed_ + place) & 0xFFFFFF) * share_ >> 24));
  }

 private:
  uint64_t hashed_, share_;
};

// A label or an ignored one as a class; -1 where it can be none.
__device__ __forceinline__ int32_t class_of(int64_t label) {
  const auto narrow = static_cast<int32_t>(label);
  return narrow == label ? narrow : -1;
}

// The usable ones among such places of an image that are of classes first <= class < end.
template <class Label, class Places>
class Members {
 public:
  __device__ Members(const Sample& job, int64_t image, const Places& places, int first, int end)
      : places_(places), first_(first), end_(end), ignored_(class_of(job.ignore_index)) {
    labels_ = static_cast<const Label*>(job.labels) + image * job.pixels();
    eligible_ = job.eligible == nullptr ? nullptr : job.eligible + image * job.pixels();
  }
  __device__ int length() const { return places_.length(); }
  __device__ int32_t pixel(int place) const { return places_.pixel(place); }
  __device__ int32_t label(int32_t pixel) const { return class_of(read_input(labels_ + pixel)); }
  __device__ bool takes(int32_t pixel, int32_t label) const {
    return label >= first_ && label < end_ && label != ignored_ && (eligible_ == nullptr || eligible_[pixel]);
  }

 private:
  const Places places_;
  const Label* labels_;
  const bool* eligible_;
  const int first_, end_, ignored_;
};

// Members that were listed.
struct List {
  const int32_t* pixels;
  int count;
  __device__ int length() const { return count; }
  __device__ int32_t pixel(int place) const { return pixels[place]; }
  __device__ int32_t label(int32_t) const { return 0; }
  __device__ bool takes(int32_t, int32_t) const { return true; }
};

// A thread's share of a tile; all of its labels are under way before the first is looked at.
struct Items {
  int32_t pixel[kItems];
  int32_t label[kItems];
  bool taken[kItems];

  template <class Source>
  __device__ Items(const Source& source, int first, int stride) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int place = first + i * stride;
      pixel[i] = place < source.length() ? source.pixel(place) : -1;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) label[i] = pixel[i] < 0 ? -1 : source.label(pixel[i]);
#pragma unroll
    for (int i = 0; i < kItems; ++i) taken[i] = pixel[i] >= 0 && source.takes(pixel[i], label[i]);
  }
};

// Calls body(pixel, label) for all that the source takes, in no order.
template <class Source, class Body>
__device__ __forceinline__ void each(const Source& source, const Body& body) {
  for (int start = 0; start < source.length(); start += kTile) {
    const Items items(source, start + static_cast<int>(threadIdx.x), kThreads);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (items.taken[i]) body(items.pixel[i], items.label[i]);
    }
  }
}

}  // namespace secl::cuda::sampling
