// SPDX-License-Identifier: Apache-2.0
// Memory that shows an access beyond its end: between guards, and poisoned.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>

#include "machine.h"

namespace secl::emulate {

constexpr size_t kAlignment = 1024;      // of shared memory, as the kernels may rely on
constexpr unsigned char kPoison = 0xFF;  // NaN in every floating type

inline size_t page() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

// Memory between two pages that may not be touched.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_((bytes + page() - 1) / page() * page()) {
    base_ = static_cast<unsigned char*>(
        mmap(nullptr, bytes_ + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base_ == MAP_FAILED) throw Fault("the emulator found no memory");
    if (bytes_) mprotect(begin(), bytes_, PROT_READ | PROT_WRITE);
  }
  ~Guarded() { munmap(base_, bytes_ + 2 * page()); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  unsigned char* begin() const { return base_ + page(); }
  unsigned char* end() const { return begin() + bytes_; }
  bool guards(const void* place) const {
    const auto* at = static_cast<const unsigned char*>(place);
    return (at >= base_ && at < begin()) || (at >= end() && at < end() + page());
  }

 private:
  size_t bytes_;
  unsigned char* base_;
};

// A block's shared memory: its end touches a guard but for what alignment needs, and that is watched.
class Shared {
 public:
  explicit Shared(size_t bytes)
      : bytes_(bytes), room_((bytes + kAlignment - 1) / kAlignment * kAlignment), memory_(room_) {}
  unsigned char* place() const { return memory_.end() - room_; }
  void poison() { std::fill(memory_.begin(), memory_.end(), kPoison); }
  bool intact() const {
    const auto untouched = [](const unsigned char byte) { return byte == kPoison; };
    return std::all_of(memory_.begin(), place(), untouched) &&
           std::all_of(place() + bytes_, memory_.end(), untouched);
  }
  bool guards(const void* at) const { return memory_.guards(at); }

 private:
  size_t bytes_, room_;
  Guarded memory_;
};

}  // namespace secl::emulate
