// SPDX-License-Identifier: Apache-2.0
#include "tensors.h"

namespace secl::cuda {
namespace {

Tensor normalize(const Tensor& rows, const Tensor& labels, void* unit) {
  check_rows("rows", rows);
  check_vector("labels", labels, rows.size(0), ScalarType::Int);
  check_device("labels", labels, rows);
  Tensor inverse = torch::stable::new_empty(rows, {rows.size(0)}, ScalarType::Float);
  const Place place(rows);
  launch_unit_rows(
      UnitRows{number_of(rows.scalar_type()), rows.const_data_ptr(), labels.const_data_ptr<int32_t>(), unit,
               inverse.mutable_data_ptr<float>(), rows.size(0), rows.size(1)},
      place.stream);
  return inverse;
}

}  // namespace

std::tuple<Tensor, Tensor> Operations::unit_rows(const Tensor& rows, const Tensor& labels) {
  Tensor unit = torch::stable::empty_like(rows);
  return {unit, normalize(rows, labels, unit.mutable_data_ptr())};
}

Tensor Operations::row_inverse(const Tensor& rows, const Tensor& labels) {
  return normalize(rows, labels, nullptr);
}

Tensor Operations::unit_rows_backward(const Tensor& grad, const Maybe& factor, const Maybe& upstream,
                                      const Tensor& unit, const Tensor& inverse) {
  check_rows("unit", unit);
  check_rows("grad", grad);
  check_type("grad", grad, ScalarType::Float);
  STD_TORCH_CHECK(grad.size(0) == unit.size(0) && grad.size(1) == unit.size(1),
                  "grad and unit must have one shape");
  check_vector("inverse", inverse, unit.size(0), ScalarType::Float);
  for (const Tensor* other : {&grad, &inverse}) check_device("grad and inverse", *other, unit);
  Tensor result = torch::stable::empty_like(unit);
  const Place place(unit);
  launch_unit_rows_backward(UnitRowsBackward{number_of(unit.scalar_type()), grad.const_data_ptr<float>(),
                                             scale_of(factor, upstream, unit), unit.const_data_ptr(),
                                             inverse.const_data_ptr<float>(), result.mutable_data_ptr(),
                                             unit.size(0), unit.size(1)},
                            place.stream);
  return result;
}

}  // namespace secl::cuda
