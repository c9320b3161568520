// SPDX-License-Identifier: Apache-2.0
// One role's rows made ready for the kernels: ignored rows dropped, the rest sorted by class, packed and
// widened.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace secl {

// Uninitialised floats on cache-line boundaries.
class Buffer {
 public:
  explicit Buffer(int64_t count = 0)
      : data_(
            static_cast<float*>(::operator new(static_cast<size_t>(count) * sizeof(float) + 1, kAlignment))) {
  }
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<float, Release> data_;
};

// What the loss knows of each pair beside the labels, by original row number.
struct PairRule {
  std::optional<torch::stable::Tensor> exclude;  // [N] int64
  int64_t positive_start, negative_stop, key_rows;
  bool self;
};

// A factor of each anchor's gradient, [padded] each; empty where no gradient is asked for.
struct GradientFactors {
  std::vector<float> lse, push, draw, weight;
};

// Positions first .. last - 1 of a side.
struct Range {
  int64_t first = 0, last = 0;
};

struct SortedSide {
  int64_t count = 0;           // rows that are not ignored
  std::vector<int64_t> key;    // [count] group << 32 | label, ascending
  std::vector<int32_t> index;  // [count] original row; ascending within one key
  std::vector<int32_t> label, group, attract, repel, skip_a, skip_b;  // [padded]
  GradientFactors factors;
  std::vector<float> copies;  // [padded] how many keys each row counts as; empty: one

  int64_t padded() const { return static_cast<int64_t>(label.size()); }
  SideView view() const;
  // The rows that may be positive keys of this class.
  Range positives(int64_t of_key, int64_t positive_start) const;
  // The rows of the classes, or else of the groups, of the classes low .. high.
  Range meeting(int64_t low, int64_t high, bool same_label) const;
};

// Sorts one side by (group, label, row); rows that `skipped` marks are ignored as well.
SortedSide sort_side(const torch::stable::Tensor& labels,                 // [n] int32
                     const std::optional<torch::stable::Tensor>& groups,  // [n] int32
                     const std::vector<bool>& skipped = {});              // [n], or empty

// Marks which keys attract and repel, and which key each anchor must not see. The two may be one.
void relate(SortedSide& anchors, SortedSide& keys, const PairRule& rule);

// Has each key count as often as its weight [n] says.
void weigh(SortedSide& keys, const float* weights);

// Summaries of `size` neighbours each, over all of the padded side.
std::vector<Span> make_spans(const SortedSide& side, int64_t size);

// Rows of a tensor [n, D], widened to float32, and each times its factor where there are any.
class RowReader {
 public:
  explicit RowReader(const torch::stable::Tensor& rows,  // [n, D]
                     const float* factors = nullptr,     // [n]
                     bool halves = false);  // a product is rounded to bf16, as kernels of halves do
  int64_t depth() const { return depth_; }
  void read(int64_t row, float* to /* [D] */) const;
  // The row without its factor: where it lies if that is float32 already, else in `scratch`.
  const float* wide(int64_t row, float* scratch /* [D] */) const { return (this->*wide_)(row, scratch); }
  float factor(int64_t row) const { return factors_ == nullptr ? 1.0f : factors_[row]; }
  // Asks for a row that is read soon: sorted rows lie anywhere, which no hardware prefetcher foresees.
  void prefetch(int64_t row) const {
    const char* from = static_cast<const char*>(data_) + row * bytes_;
    for (int64_t byte = 0; byte < bytes_; byte += 64) __builtin_prefetch(from + byte);
  }

 private:
  template <class T>
  const float* wide_as(int64_t row, float* scratch) const;
  const void* data_;
  const float* factors_;
  bool halves_;
  int64_t depth_, bytes_;
  const float* (RowReader::*wide_)(int64_t, float*) const;
};

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Positions first .. first + rows of a side as a slab; rows past its end and numbers past the width are
// zeros.
void pack_slab(const Kernels& kernel, const RowReader& reader, const SortedSide& side, int64_t first,
               int64_t rows, Slab to, float* scratch /* [D] */);

// The first rows of a slab as register tiles, [tiles, D, tile].
void pack_tiles(const Kernels& kernel, Slab from, int64_t depth, int64_t tiles, float* to);

// Largest norm of the rows that are not ignored; NaN where one of them holds a NaN.
double largest_norm(const RowReader& reader, const SortedSide& side);

}  // namespace secl
