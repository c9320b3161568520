// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <utility>

#include "tensors.h"

namespace secl::cuda {
namespace {

PixelMap layout_of(const char* name, const Tensor& map, const Tensor& index) {
  STD_TORCH_CHECK(is_row_type(map.scalar_type()), name,
                  " must be float32, float16 or bfloat16; fp64 is served by the reference backend");
  STD_TORCH_CHECK(map.dim() >= 3 && map.dim() <= 5, name,
                  " must have shape [B, D, *spatial] with one to three spatial axes");
  STD_TORCH_CHECK(map.size(1) >= 1, name, " must have a channel");
  check_dense("index", index, 1);
  check_type("index", index, ScalarType::Long);
  check_device("index", index, map);
  PixelMap layout = {map.size(0), {1, 1, 1}, map.stride(0), map.stride(1), {0, 0, 0}};
  for (int64_t axis = 2; axis < map.dim(); ++axis) {
    const int64_t place = 3 - map.dim() + axis;
    layout.size[place] = map.size(axis);
    layout.at[place] = map.stride(axis);
    layout.pixels *= map.size(axis);
  }
  STD_TORCH_CHECK(layout.pixels < int64_t{1} << 32, name, " must have fewer than 2^32 pixels; got ",
                  layout.pixels);
  return layout;
}

// The index in ascending order, and the row behind each place; rows of one pixel keep their order.
std::pair<Tensor, Tensor> sorted(const Tensor& index) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(index), from(std::optional<bool>(true)), from(int64_t{0}),
                                    from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

}  // namespace

void Operations::gather(const Tensor& features, const Tensor& index, Tensor rows, Maybe inverse) {
  const PixelMap layout = layout_of("features", features, index);
  check_rows("rows", rows);
  STD_TORCH_CHECK(rows.size(0) == index.size(0) && rows.size(1) == features.size(1),
                  "rows must have shape [n, D]");
  check_vector("inverse", inverse, index.size(0), ScalarType::Float);
  check_device("rows", rows, features);
  check_device("inverse", inverse, features);
  const Place place(features);
  launch_gather(Gather{number_of(features.scalar_type()), number_of(rows.scalar_type()), layout,
                       features.const_data_ptr(), index.const_data_ptr<int64_t>(), rows.mutable_data_ptr(),
                       inverse.has_value() ? inverse->mutable_data_ptr<float>() : nullptr, index.size(0),
                       features.size(1)},
                place.stream);
}

void Operations::gather_backward(const Tensor& grad, const Maybe& factor, const Maybe& upstream,
                                 const Tensor& index, const Maybe& unit, const Maybe& inverse, bool unique,
                                 Tensor result) {
  const PixelMap layout = layout_of("result", result, index);
  const int64_t count = index.size(0), depth = result.size(1);
  check_rows("grad", grad);
  STD_TORCH_CHECK(grad.size(0) == count && grad.size(1) == depth, "grad must have shape [n, D]");
  STD_TORCH_CHECK(unit.has_value() == inverse.has_value(), "unit and inverse go together");
  check_vector("inverse", inverse, count, ScalarType::Float);
  if (unit.has_value()) {
    check_rows("unit", *unit);
    STD_TORCH_CHECK(unit->size(0) == count && unit->size(1) == depth, "unit must have shape [n, D]");
  }
  for (const Maybe* other : {&unit, &inverse}) check_device("unit and inverse", *other, result);
  check_device("grad", grad, result);
  const RowScale scale = scale_of(factor, upstream, grad);
  const Place place(result);
  const std::pair<Tensor, Tensor> places = unique ? std::pair(index, index) : sorted(index);
  launch_gather_backward(
      GatherBackward{number_of(result.scalar_type()), number_of(grad.scalar_type()),
                     number_of(unit.has_value() ? unit->scalar_type() : grad.scalar_type()), layout,
                     grad.const_data_ptr(), scale, places.first.const_data_ptr<int64_t>(),
                     unique ? nullptr : places.second.const_data_ptr<int64_t>(),
                     unit.has_value() ? unit->const_data_ptr() : nullptr, data_of<float>(inverse),
                     result.mutable_data_ptr(), count, depth},
      place.stream);
}

}  // namespace secl::cuda
