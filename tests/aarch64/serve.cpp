// SPDX-License-Identifier: Apache-2.0
// Calls operations by name: reads each call from standard input and writes its results to standard output.
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "torch.h"

namespace boxes = torch::stable::detail;

namespace secl::aarch64 {
namespace {

template <class Value>
Value read() {
  Value value;
  if (!(std::cin >> value)) throw std::runtime_error("a call breaks off");
  return value;
}

Numbers read_numbers(size_t count) {
  Numbers found(count);
  for (int64_t& each : found) each = read<int64_t>();
  return found;
}

// A count, an end of line, and as many bytes.
std::string read_bytes() {
  std::string bytes(read<size_t>(), '\0');
  std::cin.ignore();
  std::cin.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

void write_bytes(const char* data, size_t count) {
  std::cout << ' ' << count << '\n';
  std::cout.write(data, static_cast<std::streamsize>(count));
}

void write_tensor(const AtenTensorOpaque& tensor) {
  std::cout << static_cast<int>(tensor.type) << ' ' << tensor.size.size();
  for (const int64_t size : tensor.size) std::cout << ' ' << size;
  write_bytes(tensor.storage->data(), tensor.storage->size());
}

// The arguments of one call; the tensors among them that it writes to outlive it.
class Arguments {
 public:
  explicit Arguments(size_t count) {
    for (size_t i = 0; i < count; ++i) stack.push_back(argument());
  }

  std::vector<StableIValue> stack;
  std::vector<torch::stable::Tensor> written;

 private:
  StableIValue argument() {
    const auto kind = read<std::string>();
    if (kind == "none") return boxes::from(std::nullopt);
    if (kind == "int") return boxes::from(read<int64_t>());
    if (kind == "bool") return boxes::from(read<int>() != 0);
    if (kind == "float") return boxes::from(std::strtod(read<std::string>().c_str(), nullptr));
    if (kind == "str") return boxes::from(read_bytes());
    if (kind == "tensor") return boxes::from(tensor());
    if (kind == "optional") return boxes::from(std::optional(tensor()));
    throw std::runtime_error("no argument is a " + kind);
  }

  torch::stable::Tensor tensor() {
    const bool is_written = read<int>() != 0;
    const auto type = static_cast<torch::headeronly::ScalarType>(read<int>());
    const auto dimensions = read<size_t>();
    const Numbers size = read_numbers(dimensions), stride = read_numbers(dimensions);
    const std::string bytes = read_bytes();
    torch::stable::Tensor found(new AtenTensorOpaque{
        type, size, stride, std::make_shared<std::vector<char>>(bytes.begin(), bytes.end())});
    if (is_written) written.push_back(found);
    return found;
  }
};

void write_result(char kind, StableIValue value) {
  if (kind == 'T') {
    write_tensor(*boxes::to<torch::stable::Tensor>(value).get());
  } else if (kind == 'b') {
    std::cout << boxes::to<bool>(value) << '\n';
  } else {
    const auto text = boxes::to<std::string>(value);
    write_bytes(text.data(), text.size());
  }
}

// One call: the name, how many arguments, the kinds of the results ("-" for none), then the arguments.
void serve(const std::string& name) {
  const auto count = read<size_t>();
  const auto given = read<std::string>(), results = given == "-" ? "" : given;
  Arguments arguments(count);
  arguments.stack.resize(std::max(count, results.size()));
  operations().at(name)(arguments.stack.data(), count, results.size());
  std::cout << "ok\n";
  for (size_t i = 0; i < results.size(); ++i) write_result(results[i], arguments.stack[i]);
  for (const torch::stable::Tensor& each : arguments.written) write_tensor(*each.get());
}

}  // namespace
}  // namespace secl::aarch64

int main() {
  std::ios::sync_with_stdio(false);
  for (std::string name; std::cin >> name; std::cout.flush()) {
    try {
      secl::aarch64::serve(name);
    } catch (const std::exception& error) {
      const std::string text = error.what();
      std::cout << "error " << text.size() << '\n' << text;
    }
  }
}
