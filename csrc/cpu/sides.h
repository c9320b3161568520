// SPDX-License-Identifier: Apache-2.0
// One role's rows made ready for the kernels: ignored rows dropped, the rest sorted by class, packed and
// widened.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
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
  int64_t positive_start, negative_stop;
  bool self;
};

// A factor of each anchor's gradient, [padded] each; empty where no gradient is asked for.
struct Terms {
  std::vector<float> lse, push, draw, weight;
};

struct SortedSide {
  int64_t count = 0;           // rows that are not ignored
  std::vector<int64_t> key;    // [count] group << 32 | label, ascending
  std::vector<int32_t> index;  // [count] original row; ascending within one key
  std::vector<int32_t> label, group, attract, repel, skip_a, skip_b;  // [padded]
  Terms terms;

  int64_t padded() const { return static_cast<int64_t>(label.size()); }
  Side view();
  // First and one past the last position of the rows that may be positive keys of this class.
  std::pair<int64_t, int64_t> positives(int64_t of_key, int64_t positive_start) const;
};

// Sorts one side by (group, label, row).
SortedSide sort_side(const torch::stable::Tensor& labels,                  // [n] int32
                     const std::optional<torch::stable::Tensor>& groups);  // [n] int32

// Marks which keys attract and repel, and which key each anchor must not see. The two may be one.
void relate(SortedSide& anchors, SortedSide& keys, int64_t key_rows, const PairRule& rule);

// Summaries of `size` neighbours each, over all of the padded side.
std::vector<Span> make_spans(const SortedSide& side, int64_t size);

// Rows of a tensor [n, D], widened to float32.
class RowReader {
 public:
  explicit RowReader(const torch::stable::Tensor& rows);  // [n, D]
  int64_t depth() const { return depth_; }
  void read(int64_t row, float* to /* [D] */) const { (this->*read_)(row, to); }

 private:
  template <class T>
  void read_as(int64_t row, float* to) const;
  const void* data_;
  int64_t depth_;
  void (RowReader::*read_)(int64_t, float*) const;
};

// Rows `first`.. of a side as [groups, D, width]: element r of a group of `width` rows lies beside the next.
void pack_tiles(const RowReader& rows, const SortedSide& side, int64_t first, int64_t groups, int64_t width,
                float* to, float* scratch /* [D] */);

// Positions `first`.. of a side as [stride / width, total, width], zero-padded: what one value product reads
// lies together. The last piece may be narrower than `width`.
void pack_values(const RowReader& rows, const SortedSide& side, int64_t first, int64_t count, int64_t total,
                 int64_t stride, int64_t width, float* to, float* scratch /* [stride] */);

// Runs body(worker, item) for every item; which worker takes it never shows in the result.
template <class Body>
void for_each(int64_t items, int64_t workers, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t item = next++; item < items; item = next++) body(worker, item);
    }
  });
}

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace secl
