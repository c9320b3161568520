// SPDX-License-Identifier: Apache-2.0
#include "probes.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <map>

#include "cuda/device.cuh"

namespace secl::emulate {
namespace {

using namespace secl::cuda;  // what a kernel sees
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

float* floats() { return reinterpret_cast<float*>(shared_memory()); }

// Neighbours' numbers through shared memory, with every barrier that this needs.
void careful() {
  floats()[threadIdx.x] = threadIdx.x;
  sync_block();
  if (floats()[(threadIdx.x + 1) % blockDim.x] != (threadIdx.x + 1) % blockDim.x)
    fail("a neighbour's number is wrong");
}

// The same without: which number is there depends on the order of the threads.
void careless() {
  floats()[threadIdx.x] = threadIdx.x;
  if (floats()[(threadIdx.x + 1) % blockDim.x] != (threadIdx.x + 1) % blockDim.x)
    fail("a neighbour's number is wrong");
}

void half_a_barrier() {
  if (threadIdx.x < 32) sync_block();
}

void parted_warp() { threadIdx.x % 2 ? (void)ballot(true) : sync_warp(); }

void lost_lane() {
  if (threadIdx.x == 7) return;
  sync_warp();
}

void past_the_end() { floats()[16 * 1024 / 4 + threadIdx.x] = 1; }

void before_the_start() { floats()[-300 + static_cast<int>(threadIdx.x)] = 1; }

void into_the_padding() { floats()[64 + 8 + threadIdx.x] = 1; }

void unset_memory() {
  if (floats()[threadIdx.x] == floats()[threadIdx.x]) fail("shared memory did not start as NaN");
}

alignas(16) const float kSource[4] = {1, 2, 3, 4};

void impatient_copy() {
  if (threadIdx.x == 0) {
    copy_async(floats(), kSource);
    commit_copies();
    if (floats()[0] != 1) fail("the copy has not arrived");
    wait_copies<0>();
  }
}

void patient_copy() {
  if (threadIdx.x == 0) {
    copy_async(floats(), kSource);
    commit_copies();
    copy_async(floats() + 4, kSource, false);
    commit_copies();
    wait_copies<1>();
    if (floats()[3] != 4) fail("the first copy has not arrived");
    if (floats()[4] == floats()[4]) fail("the second copy has arrived too early");
    wait_copies<0>();
    if (floats()[4] != 0) fail("the second copy has not arrived");
  }
}

void forgotten_copy() { copy_async(floats() + 4 * threadIdx.x, kSource); }

void crooked_copy() { copy_async(floats() + 1, kSource); }

// Half of the threads give what the other half takes.
void named_barriers() {
  if (threadIdx.x < 32) {
    floats()[threadIdx.x] = 3;
    arrive_some(1, 64);
  } else {
    sync_some(1, 64);
    if (floats()[threadIdx.x - 32] != 3) fail("what was given has not arrived");
  }
}

void quarrelling_barriers() { sync_some(1, threadIdx.x < 32 ? 32 : 64); }

void collectives() {
  const int lane = threadIdx.x % kWarp;
  if (shuffle(lane, 5) != 5 || shuffle(lane, (lane + 1) % 32) != (lane + 1) % 32) fail("shuffle");
  if (shuffle_xor(lane, 8) != (lane ^ 8)) fail("shuffle_xor");
  if (shuffle_up(lane, 3) != (lane < 3 ? lane : lane - 3)) fail("shuffle_up");
  if (shuffle_down(lane, 3) != (lane > 28 ? lane : lane + 3)) fail("shuffle_down");
  if (ballot(lane % 3 == 0) != 0x49249249u) fail("ballot");
  if (lanes_like(lane % 3) != 0x49249249u << lane % 3) fail("lanes_like");
  if (warp_sum(lane) != 496) fail("warp_sum");
}

template <class T>
void multiply_16(const T* left, const T* right, float* result, bool transposed) {
  T* tile = reinterpret_cast<T*>(shared_memory());  // left [16, 16], then right
  for (int i = threadIdx.x; i < 256; i += kWarp) tile[i] = left[i];
  for (int i = threadIdx.x; i < 128; i += kWarp) tile[256 + i] = right[i];
  sync_block();
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  load_matrices(a, tile + lane % 16 * 16 + lane / 16 * 8);
  if (transposed) {  // right [8, 16]
    load_matrices(b, tile + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {  // right [16, 8]
    load_matrices_transposed(b, tile + 256 + lane % 16 * 8);
  }
  float d[4] = {};
  multiply_add<T>(d, a, b);
  for (int i = 0; i < 4; ++i) result[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

void multiply_tf32(const float* left, const float* right, float* result, bool transposed) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  float d[4] = {};
  for (int k = 0; k < 16; k += 8) {
    const auto l = [&](int row, int column) { return to_tf32(left[row * 16 + k + column]); };
    const auto r = [&](int row) {
      return to_tf32(transposed ? right[g * 16 + k + row] : right[(k + row) * 8 + g]);
    };
    const uint32_t a[4] = {l(g, t), l(g + 8, t), l(g, t + 4), l(g + 8, t + 4)}, b[2] = {r(t), r(t + 4)};
    multiply_add_tf32(d, a, b);
  }
  for (int i = 0; i < 4; ++i) result[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

}  // namespace

void probe(std::string name) {
  struct Case {
    void (*kernel)();
    Grid grid;
  };
  const Grid usual{dim3(2), dim3(64), 16 << 10};
  static const std::map<std::string, Case> cases = {
      {"careful", {careful, usual}},
      {"careless", {careless, usual}},
      {"half a barrier", {half_a_barrier, usual}},
      {"parted warp", {parted_warp, usual}},
      {"lost lane", {lost_lane, usual}},
      {"past the end", {past_the_end, usual}},
      {"before the start", {before_the_start, usual}},
      {"into the padding", {into_the_padding, {dim3(1), dim3(4), 64 * 4 + 16}}},
      {"unset memory", {unset_memory, usual}},
      {"impatient copy", {impatient_copy, usual}},
      {"patient copy", {patient_copy, usual}},
      {"forgotten copy", {forgotten_copy, usual}},
      {"crooked copy", {crooked_copy, usual}},
      {"named barriers", {named_barriers, usual}},
      {"quarrelling barriers", {quarrelling_barriers, usual}},
      {"collectives", {collectives, usual}},
      {"too many threads", {careful, {dim3(1), dim3(2048), 16 << 10}}},
      {"too much memory", {careful, {dim3(1), dim3(64), 256 << 10}}},
  };
  const Case& chosen = cases.at(name);
  launch(chosen.kernel, chosen.grid, nullptr);
}

Tensor product(const Tensor& left, const Tensor& right, bool transposed) {
  STD_TORCH_CHECK(
      left.numel() == 256 && right.numel() == 128 && left.is_contiguous() && right.is_contiguous(),
      "left must be [16, 16] and right [16, 8] or [8, 16]");
  Tensor result = torch::stable::new_empty(left, {16, 8}, ScalarType::Float);
  const Grid grid{dim3(1), dim3(32), 768};
  const void *a = left.const_data_ptr(), *b = right.const_data_ptr();
  float* d = result.mutable_data_ptr<float>();
  switch (left.scalar_type()) {
    case ScalarType::BFloat16:
      launch(multiply_16<bf16>, grid, nullptr, static_cast<const bf16*>(a), static_cast<const bf16*>(b), d,
             transposed);
      break;
    case ScalarType::Half:
      launch(multiply_16<fp16>, grid, nullptr, static_cast<const fp16*>(a), static_cast<const fp16*>(b), d,
             transposed);
      break;
    default:
      launch(multiply_tf32, grid, nullptr, static_cast<const float*>(a), static_cast<const float*>(b), d,
             transposed);
  }
  return result;
}

}  // namespace secl::emulate
