// SPDX-License-Identifier: Apache-2.0
// contrast_math.h and random.h number by number, as the kernels of every device use them, for tests on the
// CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <tuple>

#include "contrast_math.h"
#include "random.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor like(const Tensor& x) { return torch::stable::empty_like(x); }

std::tuple<Tensor, Tensor> attraction(const Tensor& gap /* [n] float32 */) {
  Tensor softplus = like(gap), sigmoid = like(gap);
  for (int64_t i = 0; i < gap.numel(); ++i) {
    const float x = gap.const_data_ptr<float>()[i];
    const auto both = secl::attraction(x, std::exp(-std::fabs(x)));
    softplus.mutable_data_ptr<float>()[i] = both.softplus;
    sigmoid.mutable_data_ptr<float>()[i] = both.sigmoid;
  }
  return {softplus, sigmoid};
}

// Whether pair i attracts, and whether it repels: bits 0 and 1.
Tensor pair_mask(const Tensor& comparable, const Tensor& same, const Tensor& attract,
                 const Tensor& repel /* [n] int32, 0 or -1 */) {
  Tensor bits = like(same);
  const auto at = [](const Tensor& mask, int64_t i) { return mask.const_data_ptr<int32_t>()[i]; };
  for (int64_t i = 0; i < same.numel(); ++i) {
    const auto pair = secl::pair_mask(at(comparable, i), at(same, i), at(attract, i), at(repel, i));
    bits.mutable_data_ptr<int32_t>()[i] = (pair.positive & 1) | (pair.negative & 2);
  }
  return bits;
}

Tensor coefficient(const Tensor& e /* [n] float32 */, const Tensor& bits /* [n] int32 */, double push,
                   double draw, bool negatives_only) {
  Tensor result = like(e);
  for (int64_t i = 0; i < e.numel(); ++i) {
    const int32_t both = bits.const_data_ptr<int32_t>()[i];
    const secl::PairMask<int32_t> pair{both & 1 ? -1 : 0, both & 2 ? -1 : 0};
    result.mutable_data_ptr<float>()[i] =
        secl::coefficient(pair, e.const_data_ptr<float>()[i], static_cast<float>(push),
                          static_cast<float>(draw), negatives_only);
  }
  return result;
}

// Peak and sum of all, merged one after another.
Tensor merge(const Tensor& peaks, const Tensor& sums /* [n] float32 */) {
  secl::Running<float> all{-secl::kLargest, 0.0f};
  for (int64_t i = 0; i < peaks.numel(); ++i) {
    all = secl::merge(all, {peaks.const_data_ptr<float>()[i], sums.const_data_ptr<float>()[i]},
                      [](float x) { return std::exp2(x); });
  }
  Tensor result = torch::stable::new_empty(peaks, {2}, ScalarType::Float);
  result.mutable_data_ptr<float>()[0] = all.peak;
  result.mutable_data_ptr<float>()[1] = all.sum;
  return result;
}

Tensor chance(const Tensor& position /* [n] int64 */, int64_t seed) {
  Tensor result = like(position);
  for (int64_t i = 0; i < position.numel(); ++i) {
    result.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(
        secl::chance(secl::mix(static_cast<uint64_t>(seed)), position.const_data_ptr<int64_t>()[i]));
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY(secl_mathematics, m) {
  m.def("attraction(Tensor gap) -> (Tensor softplus, Tensor sigmoid)");
  m.def("pair_mask(Tensor comparable, Tensor same, Tensor attract, Tensor repel) -> Tensor");
  m.def("coefficient(Tensor e, Tensor bits, float push, float draw, bool negatives_only) -> Tensor");
  m.def("merge(Tensor peaks, Tensor sums) -> Tensor");
  m.def("chance(Tensor position, int seed) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(secl_mathematics, CPU, m) {
  m.impl("attraction", TORCH_BOX(&attraction));
  m.impl("pair_mask", TORCH_BOX(&pair_mask));
  m.impl("coefficient", TORCH_BOX(&coefficient));
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("chance", TORCH_BOX(&chance));
}
