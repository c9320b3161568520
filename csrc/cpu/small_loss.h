// SPDX-License-Identifier: Apache-2.0
// The loss of few rows and its gradients in one pass: no row is sorted into panels, every similarity is found
// once.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../params.h"
#include "kernels.h"
#include "sides.h"

namespace secl::cpu {

// The rows of one side and what is said of them; reads no row whose label is below 0.
struct SmallSource {
  int64_t rows;                                      // before the ignored ones are left out
  const int32_t* label;                              // [rows]
  const int32_t* group;                              // [rows], or null
  std::function<void(int64_t row, float* to)> read;  // widens one row
  const float* in_place;                             // [rows, D] where the rows are floats already, else null
};

struct SmallOptions {
  int64_t depth;
  double scale;
  bool normalize;
  bool negatives_only;
  bool gradient;  // of the anchors; in both roles where they are alone
  bool key_gradient;
  bool mean;  // else the sum
};

// The rows of a side that count, normalised where asked for.
struct SmallSide {
  int64_t count = 0;           // rows that are not ignored
  std::vector<int32_t> index;  // [count] original row
  std::vector<int32_t> label;  // [padded]
  std::vector<int32_t> group;  // [padded], or empty
  // [count] 1 / norm of a copied row; 1 of one in place, whose factor is in the coefficients already
  std::vector<float> inverse;
  std::vector<float> factor;    // [count] what the row in memory is multiplied with
  Buffer copy;                  // [padded, width] unless they are read in place
  const float* rows = nullptr;  // [padded, width]
  bool finite = true;
};

// The loss over a side of anchors and one of keys, or over the anchors alone.
class SmallLoss {
 public:
  SmallLoss(const SmallOptions& options, const SmallSource& anchors, const SmallSource* keys,
            const int64_t* exclude /* [N], or null */, const float* weights /* [N], or null */);

  float value() const { return value_; }
  const SmallSide& anchors() const { return anchors_; }
  const SmallSide& keys() const { return keys_; }
  // Writes the gradient of the rows that count, each to place(row in order of the side).
  void write_anchors(const std::function<float*(int64_t place)>& to);
  void write_keys(const std::function<float*(int64_t place)>& to);

 private:
  void take_weights(const float* weights);
  // Which key each anchor must not see: its own place, or the one that it excludes.
  void take_skips(const SmallSource* keys, const int64_t* exclude);
  void describe();
  void run();
  void prepare(int64_t tile);
  void reduce();
  void write(const SmallSide& side, int64_t work, const std::function<float*(int64_t place)>& to,
             const std::function<void(int64_t vector, float* output)>& product);

  const Kernels& kernel_ = kernels();
  const SmallOptions options_;
  const bool alone_;
  bool weighted_ = false;
  const int64_t width_;  // of a row in memory
  SmallSide anchors_, keys_;
  std::vector<int32_t> skip_;
  std::vector<float> weight_;
  std::vector<double> loss_;
  std::vector<int32_t> count_;
  Buffer tiles_, coefficients_;
  Small small_;
  double largest_ = 0;  // weight; all are kept as shares of it
  double factor_ = 1;   // of the sums, by the reduction
  float value_ = 0;
};

}  // namespace secl::cpu
