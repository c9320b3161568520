// SPDX-License-Identifier: Apache-2.0
// Small kernels that test what tests/emulate/hopper.h emulates, and operations for the parts of
// csrc/cuda/hopper that can be held against the truth alone.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <map>
#include <string>

#include "cuda/hopper/tma.cuh"
#include "cuda/hopper/weigh.cuh"
#include "cuda/hopper/wgmma.cuh"

namespace secl::emulate {
namespace {

using namespace secl::cuda;
using namespace secl::cuda::hopper;
using torch::stable::Tensor;

constexpr int kTileBytes = 64 * 128;  // 64 rows of 64 numbers

// What a probe does wrong.
enum class Wrong {
  kNothing,
  kNoWait,
  kBytes,
  kArrivals,
  kUninitialised,
  kEarlyRead,
  kEarlyWrite,
  kEarlyWeights,
  kEarlyReuse,
  kNoCommit,
  kNoSwizzle,
  kApart,
  kUnaligned
};

struct Room {
  unsigned char* tile = shared_memory();
  uint64_t* barrier = reinterpret_cast<uint64_t*>(shared_memory() + kTileBytes);
};

void load(const TensorMap& map, Wrong wrong) {
  const Room block;
  if (threadIdx.x == 0) {
    if (wrong != Wrong::kUninitialised) barrier_init(block.barrier, 1);
    barrier_init_fence();
  }
  sync_block();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(block.barrier, kTileBytes - (wrong == Wrong::kBytes ? 128 : 0));
    if (wrong == Wrong::kArrivals) barrier_arrive(block.barrier), barrier_arrive(block.barrier);
    copy_box(&map, block.barrier, block.tile + (wrong == Wrong::kUnaligned ? 128 : 0), 0, 0);
  }
  if (wrong != Wrong::kNoWait) barrier_wait(block.barrier, 0);
}

// left [64, 64] left^T, of ones: 64 everywhere; then ones [64, 64] left.
void multiply_ones(const TensorMap map, Wrong wrong) {
  load(map, wrong);
  const Room block;
  float sum[8][4], output[8][4] = {};
  uint32_t weight[4] = {0x3F803F80, 0x3F803F80, 0x3F803F80, 0x3F803F80};
  const uint32_t at = shared_address(block.tile), warp = threadIdx.x / kWarp;
  uint64_t left = row_operand(at);
  if (wrong == Wrong::kNoSwizzle) left &= ~(uint64_t{3} << 62);
  if (wrong == Wrong::kApart) left += warp * 2;
  product_fence();
  multiply_rows<Element::kBfloat16, 0>(sum, left, row_operand(at));
  for (int step = 1; step < 4; ++step) {
    multiply_rows<Element::kBfloat16, 1>(sum, row_operand(at + 32 * step), row_operand(at + 32 * step));
  }
  if (wrong != Wrong::kNoCommit) product_commit();
  if (wrong == Wrong::kEarlyRead && !(sum[0][0] == 64)) fail("the product has not arrived");
  if (wrong == Wrong::kEarlyWrite) sum[7][3] = 1;
  if (wrong == Wrong::kEarlyReuse && threadIdx.x == 0) copy_box(&map, block.barrier, block.tile, 0, 0);
  product_wait<0>();
  multiply_columns<Element::kBfloat16>(output, weight, column_operand(at, kTileBytes));
  product_commit();
  if (wrong == Wrong::kEarlyWeights) weight[2] = 0;
  product_wait<0>();
  for (int j = 0; j < 8; ++j) {
    for (int e = 0; e < 4; ++e) {
      if (sum[j][e] != 64 || output[j][e] != 16) fail("a product is wrong");
    }
  }
}

void probe(std::string name) {
  static const std::map<std::string, Wrong> cases = {{"sound", Wrong::kNothing},
                                                     {"copy not waited for", Wrong::kNoWait},
                                                     {"too few bytes expected", Wrong::kBytes},
                                                     {"too many arrivals", Wrong::kArrivals},
                                                     {"barrier without a start", Wrong::kUninitialised},
                                                     {"sums read early", Wrong::kEarlyRead},
                                                     {"sums written early", Wrong::kEarlyWrite},
                                                     {"weights written early", Wrong::kEarlyWeights},
                                                     {"tile reused early", Wrong::kEarlyReuse},
                                                     {"products without a group", Wrong::kNoCommit},
                                                     {"operand without a swizzle", Wrong::kNoSwizzle},
                                                     {"operands that differ", Wrong::kApart},
                                                     {"tile off its boundary", Wrong::kUnaligned}};
  static const std::vector<uint16_t> ones(64 * 64 + 8, 0x3F80);
  TensorMap map;
  const auto* rows =
      reinterpret_cast<const void*>((reinterpret_cast<uintptr_t>(ones.data()) + 15) & ~uintptr_t{15});
  describe_rows(&map, rows, 64, 64, 64, false);
  const Wrong wrong = cases.at(name);
  launch(multiply_ones, Grid{dim3(1), dim3(128), kTileBytes + 1024}, nullptr, map, wrong);
}

Tensor power(const Tensor& x) {
  Tensor result = torch::stable::new_empty(x, {x.numel()});
  const float* from = x.const_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) result.mutable_data_ptr<float>()[i] = exp2_polynomial(from[i]);
  return result;
}

}  // namespace
}  // namespace secl::emulate

STABLE_TORCH_LIBRARY_FRAGMENT(secl_emulated, m) {
  m.def("hopper_probe(str name) -> ()");
  m.def("exp2_polynomial(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(secl_emulated, CPU, m) {
  m.impl("exp2_polynomial", TORCH_BOX(&secl::emulate::power));
}

STABLE_TORCH_LIBRARY_IMPL(secl_emulated, CompositeExplicitAutograd, m) {
  m.impl("hopper_probe", TORCH_BOX(&secl::emulate::probe));
}
