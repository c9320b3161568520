// SPDX-License-Identifier: Apache-2.0
// The whole loss of few rows as one operation, gradients included; what it does not serve goes the long way.
#include <optional>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../operations.h"
#include "small_loss.h"

namespace secl::cpu {
namespace {

bool is_vector(const Tensor& values, int64_t length) {
  return values.dim() == 1 && values.size(0) == length && values.is_contiguous() && values.is_cpu();
}

bool is_vector(const Maybe& values, int64_t length, ScalarType type) {
  return !values || (is_vector(*values, length) && values->scalar_type() == type);
}

// Numbers of rows as int32, where they are int64 or int32.
class Numbers {
 public:
  Numbers() = default;
  Numbers(Numbers&&) = default;  // the copy keeps its place
  Numbers(const Tensor& values, int64_t length) {
    if (!is_vector(values, length)) return;
    if (values.scalar_type() == ScalarType::Int) data_ = values.const_data_ptr<int32_t>();
    if (values.scalar_type() != ScalarType::Long) return;
    const int64_t* from = values.const_data_ptr<int64_t>();
    copy_.assign(from, from + length);  // what does not fit wraps, as it does in torch
    data_ = copy_.data();
  }
  explicit operator bool() const { return data_ != nullptr; }
  const int32_t* get() const { return data_; }

 private:
  std::vector<int32_t> copy_;
  const int32_t* data_ = nullptr;
};

Numbers numbers(const Maybe& values, int64_t length) { return values ? Numbers(*values, length) : Numbers(); }

bool is_rows(const Tensor& rows) {
  return rows.dim() == 2 && is_row_type(rows.scalar_type()) && rows.is_contiguous() && rows.is_cpu() &&
         rows.size(0) > 0 && rows.size(1) > 0;
}

SmallSource source(const RowReader& reader, const Tensor& rows, const Numbers& labels,
                   const Numbers& groups) {
  const bool is_float = rows.scalar_type() == ScalarType::Float;
  return {rows.size(0), labels.get(), groups.get(),
          [&reader](int64_t row, float* to) { reader.read(row, to); },
          is_float ? static_cast<const float*>(rows.const_data_ptr()) : nullptr};
}

// Zeros where a row is ignored.
Tensor gradient(const Tensor& rows, const SmallSide& side, bool wanted, const auto& write) {
  Tensor found = torch::stable::empty({wanted ? rows.size(0) : 0, rows.size(1)}, ScalarType::Float);
  if (!wanted) return found;
  if (side.count < rows.size(0)) found = torch::stable::zero_(found);
  float* to = found.mutable_data_ptr<float>();
  const int64_t depth = rows.size(1);
  write([&, to, depth](int64_t place) { return to + side.index[place] * depth; });
  return found;
}

SmallState unserved() {
  const Tensor none = torch::stable::empty({0}, ScalarType::Float);
  return {none, none, none, false};
}

bool is_served(const SmallCall& call) {
  const int64_t n = call.anchors.size(0), d = call.anchors.size(1), m = call.keys ? call.keys->size(0) : n;
  if (call.keys.has_value() != call.key_labels.has_value()) return false;
  if (call.keys && !(is_rows(*call.keys) && call.keys->size(1) == d &&
                     call.keys->scalar_type() == call.anchors.scalar_type()))
    return false;
  const bool alone = !call.keys, grouped = call.anchor_groups.has_value();
  if (alone ? call.key_groups || call.exclude : grouped != call.key_groups.has_value()) return false;
  return is_vector(call.exclude, n, ScalarType::Long) && is_vector(call.weights, n, ScalarType::Float) &&
         (call.reduction == kMean || call.reduction == kSum) && m > 0;
}

}  // namespace

SmallState info_nce(const SmallCall& call) {
  if (!is_rows(call.anchors) || !is_served(call)) return unserved();
  const int64_t n = call.anchors.size(0), m = call.keys ? call.keys->size(0) : n;
  const Numbers anchor_labels(call.anchor_labels, n), key_labels = numbers(call.key_labels, m),
                                                      anchor_groups = numbers(call.anchor_groups, n),
                                                      key_groups = numbers(call.key_groups, m);
  if (!anchor_labels || (call.keys && !key_labels) || (call.anchor_groups && !anchor_groups) ||
      (call.key_groups && !key_groups))
    return unserved();
  const bool of_anchors = (call.flags & kAnchorGradient) != 0;
  const bool of_keys = call.keys && (call.flags & kKeyGradient) != 0;
  const SmallOptions options{call.anchors.size(1),           call.scale, call.normalize,
                             (call.flags & kNegatives) != 0, of_anchors, of_keys,
                             call.reduction == kMean};
  const RowReader anchor_reader(call.anchors), key_reader(call.keys ? *call.keys : call.anchors);
  const SmallSource anchors = source(anchor_reader, call.anchors, anchor_labels, anchor_groups);
  SmallSource keys = anchors;
  if (call.keys) keys = source(key_reader, *call.keys, key_labels, key_groups);
  SmallLoss loss(options, anchors, call.keys ? &keys : nullptr,
                 call.exclude ? call.exclude->const_data_ptr<int64_t>() : nullptr,
                 call.weights ? call.weights->const_data_ptr<float>() : nullptr);
  Tensor value = torch::stable::empty({}, ScalarType::Float);
  *value.mutable_data_ptr<float>() = loss.value();
  return {value,
          gradient(call.anchors, loss.anchors(), of_anchors, [&](const auto& to) { loss.write_anchors(to); }),
          gradient(call.keys ? *call.keys : call.anchors, loss.keys(), of_keys,
                   [&](const auto& to) { loss.write_keys(to); }),
          true};
}

}  // namespace secl::cpu
