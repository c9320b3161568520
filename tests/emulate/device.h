// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/device.cuh offers, on the emulated GPU; the meaning of each name stands there. A kernel for
// one architecture adds its own header beside this one.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using std::max;
using std::min;

namespace secl::cuda {

using bf16 = torch::headeronly::BFloat16;
using fp16 = torch::headeronly::Half;
using emulate::Grid;

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, Stream, Arguments&&... arguments) {
  if (grid.blocks.count() == 0) return;
  emulate::run(grid, [&] { kernel(arguments...); });
}

inline unsigned char* shared_memory() { return emulate::self().block->shared; }

inline void sync_block() { emulate::arrive("sync_block", 0, blockDim.count(), true); }
inline void sync_some(int id, int threads) { emulate::arrive("sync_some", id, threads, true); }
inline void arrive_some(int id, int threads) { emulate::arrive("arrive_some", id, threads, false); }
inline void sync_warp(unsigned mask = kAllLanes) {
  emulate::meet("sync_warp", mask, nullptr, [](void* const*) {});
}

// Each lane's value becomes that of the lane that source(lane) names.
template <class T, class Source>
T exchange(const char* name, T value, const Source& source) {
  emulate::meet(name, kAllLanes, &value, [&](void* const* lanes) {
    T before[emulate::kLanes];
    for (unsigned lane = 0; lane < emulate::kLanes; ++lane) before[lane] = *static_cast<T*>(lanes[lane]);
    for (unsigned lane = 0; lane < emulate::kLanes; ++lane)
      *static_cast<T*>(lanes[lane]) = before[source(lane)];
  });
  return value;
}

// The lane may differ between the lanes.
template <class T>
T shuffle(T value, int lane) {
  std::pair<T, int> mine{value, lane};
  emulate::meet("shuffle", kAllLanes, &mine, [](void* const* lanes) {
    T before[emulate::kLanes];
    const auto at = [&](unsigned i) { return static_cast<std::pair<T, int>*>(lanes[i]); };
    for (unsigned i = 0; i < emulate::kLanes; ++i) before[i] = at(i)->first;
    for (unsigned i = 0; i < emulate::kLanes; ++i) at(i)->first = before[at(i)->second % emulate::kLanes];
  });
  return mine.first;
}
template <class T>
T shuffle_xor(T value, int lanes) {
  return exchange("shuffle_xor", value, [=](unsigned lane) { return lane ^ lanes; });
}
template <class T>
T shuffle_up(T value, int lanes) {
  return exchange("shuffle_up", value,
                  [=](unsigned lane) { return lane < unsigned(lanes) ? lane : lane - lanes; });
}
template <class T>
T shuffle_down(T value, int lanes) {
  return exchange("shuffle_down", value,
                  [=](unsigned lane) { return lane + lanes < emulate::kLanes ? lane + lanes : lane; });
}
inline unsigned ballot(bool value) {
  unsigned mine = value;
  emulate::meet("ballot", kAllLanes, &mine, [](void* const* lanes) {
    unsigned bits = 0;
    for (unsigned i = 0; i < emulate::kLanes; ++i) bits |= (*static_cast<unsigned*>(lanes[i]) & 1) << i;
    for (unsigned i = 0; i < emulate::kLanes; ++i) *static_cast<unsigned*>(lanes[i]) = bits;
  });
  return mine;
}
inline unsigned lanes_like(int value) {
  std::pair<int, unsigned> mine{value, 0};
  emulate::meet("lanes_like", kAllLanes, &mine, [](void* const* lanes) {
    const auto at = [&](unsigned i) { return static_cast<std::pair<int, unsigned>*>(lanes[i]); };
    for (unsigned i = 0; i < emulate::kLanes; ++i) {
      for (unsigned j = 0; j < emulate::kLanes; ++j)
        at(i)->second |= unsigned(at(i)->first == at(j)->first) << j;
    }
  });
  return mine.second;
}
inline uint32_t float_bits(float x) { return std::bit_cast<uint32_t>(x); }

inline float float_from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

inline void add_count(int32_t* count, int32_t value) { *count += value; }

inline int population(unsigned bits) { return std::popcount(bits); }
inline int leading_zeros(uint32_t bits) { return std::countl_zero(bits); }

template <class T>
T read_input(const T* place) {
  emulate::machine().bytes_read += sizeof(T);
  return *place;
}

inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float exp2_approx(float x) { return flush(std::exp2(flush(x))); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return static_cast<float>(x); }
inline float to_float(fp16 x) { return static_cast<float>(x); }
template <class T>
T from_float(float x) {
  return static_cast<T>(x);
}

template <class T>
uint32_t pack(float low, float high) {
  return std::bit_cast<uint16_t>(static_cast<T>(low)) |
         uint32_t{std::bit_cast<uint16_t>(static_cast<T>(high))} << 16;
}

template <class T>
float unpack(uint32_t both, int which) {
  return static_cast<float>(std::bit_cast<T>(static_cast<uint16_t>(both >> 16 * which)));
}

// Round to nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (bits + 0x1000) & ~0x1FFFu : bits;
}

// What one lane brings to a load of matrices: the row it names, and where its numbers go.
struct MatrixRow {
  const uint16_t* row;
  uint32_t* r;
};

template <int count>
void load_matrices(const char* name, uint32_t (&r)[count], const void* row, bool transposed) {
  MatrixRow mine{static_cast<const uint16_t*>(row), r};
  if (emulate::self().lane() < 8 * count) emulate::check_shared(name, row, 16, 16);
  emulate::meet(name, kAllLanes, &mine, [=](void* const* lanes) {
    const auto at = [&](int lane) { return static_cast<MatrixRow*>(lanes[lane]); };
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < count; ++i) {
        const int line = lane / 4, pair = lane % 4 * 2;
        const uint16_t low = transposed ? at(8 * i + pair)->row[line] : at(8 * i + line)->row[pair];
        const uint16_t high = transposed ? at(8 * i + pair + 1)->row[line] : at(8 * i + line)->row[pair + 1];
        at(lane)->r[i] = low | uint32_t{high} << 16;
      }
    }
  });
}
template <int count>
void load_matrices(uint32_t (&r)[count], const void* row) {
  load_matrices("load_matrices", r, row, false);
}
template <int count>
void load_matrices_transposed(uint32_t (&r)[count], const void* row) {
  load_matrices("load_matrices_transposed", r, row, true);
}

// What one lane brings to a product of the warp.
struct Factors {
  float* d;
  const uint32_t *a, *b;
};

// d [16, 8] += a [16, depth] b [depth, 8], given the numbers of a and b by row and column.
template <class A, class B>
void multiply_lanes(void* const* lanes, int depth, const A& a, const B& b) {
  const auto at = [&](int lane) { return static_cast<Factors*>(lanes[lane]); };
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float& sum = at(row % 8 * 4 + column / 2)->d[row / 8 * 2 + column % 2];
      for (int k = 0; k < depth; ++k) sum += a(at, row, k) * b(at, k, column);
    }
  }
}

template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Factors mine{d, a, b};
  emulate::meet("multiply_add", kAllLanes, &mine, [](void* const* lanes) {
    multiply_lanes(
        lanes, 16,
        [](const auto& at, int row, int k) {
          return unpack<T>(at(row % 8 * 4 + k % 8 / 2)->a[row / 8 + k / 8 * 2], k % 2);
        },
        [](const auto& at, int k, int column) {
          return unpack<T>(at(column * 4 + k % 8 / 2)->b[k / 8], k % 2);
        });
  });
}

inline void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Factors mine{d, a, b};
  const auto number = [](uint32_t bits) { return std::bit_cast<float>(bits & ~0x1FFFu); };
  emulate::meet("multiply_add_tf32", kAllLanes, &mine, [=](void* const* lanes) {
    multiply_lanes(
        lanes, 8,
        [=](const auto& at, int row, int k) {
          return number(at(row % 8 * 4 + k % 4)->a[row / 8 + k / 4 * 2]);
        },
        [=](const auto& at, int k, int column) { return number(at(column * 4 + k % 4)->b[k / 4]); });
  });
}

// The bytes are read now and arrive when they are waited for, as late as a GPU may let them; until then NaN
// is there.
inline void start_copy(const char* name, void* shared, const void* global, size_t size, bool valid) {
  emulate::check_shared(name, shared, size, size);
  if (valid && reinterpret_cast<uintptr_t>(global) % size != 0) {
    emulate::fail(std::string(name) + " needs a source on a multiple of its bytes");
  }
  emulate::Copy copy{static_cast<unsigned char*>(shared), size, {}};
  if (valid) std::memcpy(copy.bytes, global, size);
  std::memset(shared, 0xFF, size);
  emulate::self().copies.push_back(copy);
}
inline void copy_async(void* shared, const void* global, bool valid = true) {
  start_copy("copy_async", shared, global, 16, valid);
}
inline void copy_async_word(uint32_t* shared, const uint32_t* global) {
  start_copy("copy_async_word", shared, global, 4, true);
}
inline void commit_copies() {
  emulate::self().groups.push_back(std::move(emulate::self().copies));
  emulate::self().copies.clear();
}
template <int pending>
void wait_copies() {
  auto& groups = emulate::self().groups;
  for (; groups.size() > pending; groups.pop_front()) {
    for (const emulate::Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, copy.size);
  }
}

}  // namespace secl::cuda
