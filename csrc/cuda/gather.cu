// SPDX-License-Identifier: Apache-2.0
// Rows of a feature map at pixel indices, and the gradient that puts them back; a row is one warp's.
#include "kernels.h"
#include "norm.cuh"
#include "numbers.cuh"

namespace secl::cuda {
namespace {

constexpr int kWarps = 8;   // of a block, a row each
constexpr int kBlocks = 3;  // of a multiprocessor: asked for more, the compiler keeps registers in memory
constexpr int kHeld = 16;   // numbers of a row that a lane keeps in registers
constexpr int kSummed = 8;  // the same of a gradient: more would not fit beside what it is made of
constexpr int kChunk = kHeld * kWarp;

// The channels of a lane in a chunk of a row: `width` neighbours at a time, so that a warp reads neighbours.
template <int width>
__device__ __forceinline__ int64_t channel_of(int64_t chunk, int part) {
  return chunk + (part * kWarp + static_cast<int>(threadIdx.x % kWarp)) * width;
}

// The lane's numbers of a chunk of one pixel; zeros past the last channel.
template <class T, int width>
__device__ __forceinline__ void read_pixel(const T* pixel, int64_t channel_stride, int64_t chunk,
                                           int64_t depth, float (&values)[kHeld]) {
#pragma unroll
  for (int part = 0; part < kHeld / width; ++part) {
    const int64_t channel = channel_of<width>(chunk, part);
    Vector<T, width> loaded = {};
    if (channel < depth) {
      loaded = *reinterpret_cast<const Vector<T, width>*>(pixel + channel * (width > 1 ? 1 : channel_stride));
    }
#pragma unroll
    for (int i = 0; i < width; ++i) values[part * width + i] = to_float(loaded.at[i]);
  }
}

template <class T, int width, bool whole /* row in one chunk */>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks) gather_kernel(Gather job) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= job.count) return;
  const int64_t index = job.index[row];
  const bool inside = job.layout.holds(index);
  const T* pixel = static_cast<const T*>(job.map) + job.layout.offset(inside ? index : 0);
  const int64_t depth = inside ? job.depth : 0;  // of what is read
  float values[kHeld];
  if (whole) read_pixel<T, width>(pixel, job.layout.channel, 0, depth, values);
  Norm norm{1.0f, 1.0f};
  if (job.inverse != nullptr) {
    norm = norm_of([&](const auto& body) {
      for (int64_t chunk = 0; chunk < (whole ? 1 : depth); chunk += kChunk) {
        if (!whole) read_pixel<T, width>(pixel, job.layout.channel, chunk, depth, values);
#pragma unroll
        for (int i = 0; i < kHeld; ++i) body(values[i]);
      }
    });
    if (threadIdx.x % kWarp == 0) job.inverse[row] = norm.inverse();
  }
  for (int64_t chunk = 0; chunk < (whole ? 1 : job.depth); chunk += kChunk) {
    if (!whole) read_pixel<T, width>(pixel, job.layout.channel, chunk, depth, values);
#pragma unroll
    for (int part = 0; part < kHeld / width; ++part) {
      const int64_t channel = channel_of<width>(chunk, part);
      float unit[width];
#pragma unroll
      for (int i = 0; i < width; ++i) unit[i] = norm.unit(values[part * width + i]);
      if (channel < job.depth) store_numbers<width>(job.rows, job.row_type, row * job.depth + channel, unit);
    }
  }
}

// What one draw adds to the gradient of its pixel.
template <int width>
class DrawGradient {
 public:
  __device__ DrawGradient(const GatherBackward& job, int64_t row) : job_(job), first_(row * job.depth) {
    scale_ = job.scale.of(row);
    if (job.unit == nullptr) return;
    inverse_ = job.inverse[row];
    lost_ = radial([&](const auto& body) {
      for (int64_t channel = channel_of<width>(0, 0); channel < job.depth; channel += kWarp * width) {
        float grad[width], unit[width] = {};
        read(channel, grad, unit);
#pragma unroll
        for (int i = 0; i < width; ++i) body(grad[i], unit[i]);
      }
    });
  }
  __device__ void add(int64_t channel, float* sum /* [width] */) const {
    float grad[width], unit[width] = {};
    read(channel, grad, unit);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sum[i] += job_.unit == nullptr ? grad[i] : through_norm(grad[i], unit[i], lost_, inverse_);
    }
  }

 private:
  __device__ void read(int64_t channel, float (&grad)[width], float (&unit)[width]) const {
    load_numbers<width>(job_.grad, job_.row_type, first_ + channel, grad);
#pragma unroll
    for (int i = 0; i < width; ++i) grad[i] = scaled(grad[i], scale_);
    if (job_.unit != nullptr) load_numbers<width>(job_.unit, job_.unit_type, first_ + channel, unit);
  }

  const GatherBackward& job_;
  int64_t first_;
  float scale_, inverse_ = 0.0f;
  Radial lost_ = {};
};

template <class T, int width>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks) gather_backward_kernel(GatherBackward job) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (place >= job.count) return;
  const int64_t index = job.index[place];
  if (!job.layout.holds(index)) return;
  int64_t end = place + 1;  // of the run of draws of this pixel
  if (job.order != nullptr) {
    if (place > 0 && job.index[place - 1] == index) return;
    while (end < job.count && job.index[end] == index) ++end;
  }
  T* pixel = static_cast<T*>(job.result) + job.layout.offset(index);
  for (int64_t chunk = 0; chunk < job.depth; chunk += kSummed * kWarp) {
    float sum[kSummed] = {};
    for (int64_t at = place; at < end; ++at) {
      const DrawGradient<width> draw(job, job.order == nullptr ? at : job.order[at]);
#pragma unroll
      for (int part = 0; part < kSummed / width; ++part) {
        const int64_t channel = channel_of<width>(chunk, part);
        if (channel < job.depth) draw.add(channel, sum + part * width);
      }
    }
#pragma unroll
    for (int part = 0; part < kSummed / width; ++part) {
      const int64_t channel = channel_of<width>(chunk, part);
      if (channel >= job.depth) continue;
      Vector<T, width> stored;
#pragma unroll
      for (int i = 0; i < width; ++i) stored.at[i] = from_float<T>(sum[part * width + i]);
      *reinterpret_cast<Vector<T, width>*>(pixel + channel * (width > 1 ? 1 : job.layout.channel)) = stored;
    }
  }
}

// Whether pixels of these numbers can be moved 16 bytes at a time: their channels are neighbours, on such
// boundaries.
template <class T>
bool whole_parts(const PixelMap& layout, const void* map) {
  constexpr int kPart = 16 / sizeof(T);
  bool fits = layout.channel == 1 && on_boundary(map) && layout.image % kPart == 0;
  for (const int64_t stride : layout.at) fits = fits && stride % kPart == 0;
  return fits;
}

// A part of a row in another type may be twice as wide.
bool rows_on_boundary(const void* rows) { return rows == nullptr || on_boundary(rows, 32); }

}  // namespace

void launch_gather(const Gather& job, Stream stream) {
  const Grid grid{dim3(blocks_for(job.count, kWarps)), dim3(kWarps * kWarp)};
  with_number(job.map_type, [&](auto zero) {
    using T = decltype(zero);
    const bool aligned = whole_parts<T>(job.layout, job.map) && rows_on_boundary(job.rows);
    with_vector<T>(aligned, job.depth, [&](auto width) {
      auto* kernel =
          job.depth <= kChunk ? gather_kernel<T, width.kValue, true> : gather_kernel<T, width.kValue, false>;
      launch(kernel, grid, stream, job);
    });
  });
}

void launch_gather_backward(const GatherBackward& job, Stream stream) {
  const Grid grid{dim3(blocks_for(job.count, kWarps)), dim3(kWarps * kWarp)};
  with_number(job.map_type, [&](auto zero) {
    using T = decltype(zero);
    const bool aligned =
        whole_parts<T>(job.layout, job.result) && rows_on_boundary(job.grad) && rows_on_boundary(job.unit);
    with_vector<T>(aligned, job.depth,
                   [&](auto width) { launch(gather_backward_kernel<T, width.kValue>, grid, stream, job); });
  });
}

}  // namespace secl::cuda
