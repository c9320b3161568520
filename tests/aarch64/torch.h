// SPDX-License-Identifier: Apache-2.0
// A stand-in for torch: dense tensors in memory, and the operations that the extension has registered.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

using Numbers = std::vector<int64_t>;

struct AtenTensorOpaque {
  torch::headeronly::ScalarType type;
  Numbers size, stride;
  std::shared_ptr<std::vector<char>> storage;

  int64_t numel() const;
  bool is_contiguous() const;
};

namespace secl::aarch64 {

// A tensor without gaps, filled with NaNs as the tests' own memory is.
AtenTensorHandle make(torch::headeronly::ScalarType type, const Numbers& size);

size_t element_size(torch::headeronly::ScalarType type);

using Operation = void (*)(StableIValue* stack, uint64_t arguments, uint64_t results);
std::map<std::string, Operation>& operations();

}  // namespace secl::aarch64
