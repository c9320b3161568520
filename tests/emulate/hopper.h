// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/hopper offers, on the emulated GPU; the meaning of each name stands there. Everything
// asynchronous happens as late as a GPU may do it, and what it will write is NaN until then: copies when
// their barrier is waited for, products when their group is. Operands are read through their descriptors and
// the 128-byte swizzle, as the hardware reads them. What this cannot show is that the PTX says the same:
// encodings, and the proxies that fences order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "cuda/hopper/plan.h"
#include "device.h"

namespace secl::cuda::hopper {

// Of a place in shared memory; the window starts at a multiple of 1024, as kernels may rely on.
inline uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(place) - emulate::self().block->shared);
}

struct BarrierWord {
  uint16_t expected, pending;
  int32_t bytes_and_phase;  // bytes * 2 + phase

  int phase() const { return bytes_and_phase & 1; }
  int bytes() const { return bytes_and_phase >> 1; }
};
static_assert(sizeof(BarrierWord) == sizeof(uint64_t));

inline BarrierWord& barrier_word(uint64_t* barrier) {
  emulate::check_shared("a barrier", barrier, 8, 8);
  auto& word = *reinterpret_cast<BarrierWord*>(barrier);
  if (word.expected == 0xFFFF) emulate::fail("a barrier is used before it is initialised");
  return word;
}

inline void barrier_settle(BarrierWord& word) {
  if (word.pending == 0 && word.bytes() == 0) {
    word.pending = word.expected;
    word.bytes_and_phase ^= 1;
  }
}

inline void barrier_init(uint64_t* barrier, int arrivals) {
  emulate::check_shared("barrier_init", barrier, 8, 8);
  *reinterpret_cast<BarrierWord*>(barrier) = {static_cast<uint16_t>(arrivals),
                                              static_cast<uint16_t>(arrivals), 0};
}
inline void barrier_init_fence() {}

inline void barrier_arrive(uint64_t* barrier) {
  BarrierWord& word = barrier_word(barrier);
  if (word.pending == 0) emulate::fail("more arrivals at a barrier than its phase has");
  --word.pending;
  barrier_settle(word);
  // All others go first, as far as they can: what this thread should have done before it arrived is then too
  // late.
  emulate::wait_until("barrier_arrive", [] { return emulate::machine().idle; });
}

inline void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  barrier_word(barrier).bytes_and_phase += 2 * static_cast<int32_t>(bytes);
  barrier_arrive(barrier);
}

inline void fence_async_shared() {}
template <int kRegisters>
void give_registers() {
  sync_warp();
}
template <int kRegisters>
void take_registers() {
  sync_warp();
}

struct TensorMap {
  const uint16_t* rows;
  int64_t count;
  int width, rows_per_box;
};

inline const char* describe_rows(TensorMap* map, const void* rows, int64_t count, int width, int rows_per_box,
                                 bool) {
  if (reinterpret_cast<uintptr_t>(rows) % 16 != 0 || width % 8 != 0 || rows_per_box > 256)
    return "refused the matrix";
  *map = {static_cast<const uint16_t*>(rows), count, width, rows_per_box};
  return nullptr;
}

struct BoxCopy {
  TensorMap map;
  uint64_t* barrier;
  unsigned char* shared;
  size_t offset;
  int column, row;
};

// A launch's asynchronous state; a fault may leave some behind.
struct InFlight {
  struct Product {
    float* sum;
    int columns;
    bool adds, half;
    uint64_t left, right;
    uint32_t registers[4];
    const uint32_t* from;  // where the registers are, or null: the left side is in shared memory
  };
  struct Lane {
    std::vector<Product> open;
    std::deque<std::vector<Product>> groups;
    std::map<float*, std::vector<float>> sums;  // what the registers will hold
  };

  uint64_t launch = 0;
  dim3 block;
  std::vector<BoxCopy> copies;
  std::map<unsigned, Lane> lanes;
  std::map<unsigned, std::vector<uint64_t>> issued;  // by warpgroup: every warp must issue the same products
  std::map<unsigned, size_t> issues;                 // by warp

  static InFlight& now() {
    static InFlight only;
    const dim3 block = emulate::self().block->index;
    if (only.launch != emulate::machine().launches || only.block.x != block.x || only.block.y != block.y ||
        only.block.z != block.z) {
      only = InFlight{};
      only.launch = emulate::machine().launches;
      only.block = block;
    }
    return only;
  }
  Lane& lane() { return lanes[emulate::self().number]; }
};

inline size_t swizzled(size_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

// No thread runs meanwhile.
inline void land(const BoxCopy& copy) {
  for (int row = 0; row < copy.map.rows_per_box; ++row) {
    for (int column = 0; column < 64; ++column) {
      const int64_t from = copy.row + int64_t{row};
      const bool inside = from >= 0 && from < copy.map.count && copy.column + column < copy.map.width;
      const uint16_t bits = inside ? copy.map.rows[from * copy.map.width + copy.column + column] : 0;
      std::memcpy(copy.shared + swizzled(copy.offset + row * 128 + column * 2), &bits, 2);
    }
  }
  auto& word = *reinterpret_cast<BarrierWord*>(copy.barrier);
  word.bytes_and_phase -= 2 * 128 * copy.map.rows_per_box;
  barrier_settle(word);
}

inline void copy_box(const TensorMap* map, uint64_t* barrier, void* target, int column, int row) {
  const size_t bytes = 128 * map->rows_per_box;
  emulate::check_shared("copy_box", target, bytes, 1024);
  std::memset(target, 0xFF, bytes);
  auto& copies = InFlight::now().copies;
  copies.push_back({*map, barrier, emulate::self().block->shared, shared_address(target), column, row});
  auto& most = emulate::machine().most_copies;
  most = std::max(most, static_cast<int64_t>(copies.size()));
}

inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  const BarrierWord& word = barrier_word(barrier);
  auto& copies = InFlight::now().copies;
  emulate::wait_until("barrier_wait", [&, barrier, parity] {
    // No sooner than every other thread has gone as far as it can.
    for (size_t i = emulate::machine().idle ? 0 : copies.size(); i < copies.size();) {
      if (copies[i].barrier != barrier) {
        ++i;
        continue;
      }
      const BoxCopy copy = copies[i];
      copies.erase(copies.begin() + i);
      land(copy);
    }
    return word.phase() != static_cast<int>(parity);
  });
}

// What a descriptor says, read back from its bits.
struct Operand {
  size_t start, column_step, atom_step;

  explicit Operand(uint64_t bits)
      : start((bits & 0x3FFF) << 4),
        column_step((bits >> 16 & 0x3FFF) << 4),
        atom_step((bits >> 32 & 0x3FFF) << 4) {
    if (bits >> 62 != 1 || (bits >> 49 & 7) != 0) emulate::fail("a descriptor without the 128-byte swizzle");
  }
  uint16_t at(size_t offset) const {
    uint16_t bits;
    const unsigned char* place = emulate::self().block->shared + swizzled(offset);
    emulate::check_shared("a product", place, 2, 2);
    std::memcpy(&bits, place, 2);
    return bits;
  }
  // Number `k` of row `row`: rows along the rows in memory, atoms of 8; 16 numbers do not leave 128 bytes.
  uint16_t row_number(int row, int k) const {
    return at(start + row / 8 * atom_step + row % 8 * 128 + k * 2);
  }
  // Number `k` of column `column`: k along the rows in memory, atoms of 8; 64 columns to a row.
  uint16_t column_number(int k, int column) const {
    return at(start + column / 64 * column_step + k / 8 * atom_step + k % 8 * 128 + column % 64 * 2);
  }
};

inline float number_of(uint16_t bits, bool half) {
  return half ? static_cast<float>(std::bit_cast<fp16>(bits)) : static_cast<float>(std::bit_cast<bf16>(bits));
}

inline void issue(const InFlight::Product& product) {
  InFlight& flight = InFlight::now();
  InFlight::Lane& lane = flight.lane();
  const size_t count = 4 * product.columns / 8;
  auto found = lane.sums.find(product.sum);
  if (found == lane.sums.end()) {
    found = lane.sums.emplace(product.sum, std::vector<float>(product.sum, product.sum + count)).first;
    std::memset(product.sum, 0xFF, count * sizeof(float));
  } else if (found->second.size() != count) {
    emulate::fail("products of two shapes share their sums");
  }
  lane.open.push_back(product);
  if (emulate::self().lane() != 0) return;
  const unsigned warp = emulate::self().number / emulate::kLanes;
  auto& issued = flight.issued[warp / 4];
  const size_t turn = flight.issues[warp]++;
  const uint64_t mark = product.right * 31 + product.left;
  if (turn == issued.size()) issued.push_back(mark);
  if (issued[turn] != mark) emulate::fail("warps of one warpgroup multiply different operands");
}

template <Element kElement, int kAdd, int kTiles>
void multiply_rows(float (&sum)[kTiles][4], uint64_t left, uint64_t right) {
  issue({&sum[0][0], 8 * kTiles, kAdd != 0, kElement == Element::kHalf, left, right, {}, nullptr});
}

template <Element kElement, int kTiles>
void multiply_columns(float (&sum)[kTiles][4], const uint32_t (&left)[4], uint64_t right) {
  issue({&sum[0][0],
         8 * kTiles,
         true,
         kElement == Element::kHalf,
         0,
         right,
         {left[0], left[1], left[2], left[3]},
         left});
}

// One product of a warp: 16 rows of the warpgroup's 64.
inline void multiply(InFlight::Product* const (&lanes)[32], std::vector<float>* const (&sums)[32], int warp) {
  const InFlight::Product& first = *lanes[0];
  const Operand right(first.right);
  std::vector<float> b(16 * first.columns);
  for (int k = 0; k < 16; ++k) {
    for (int column = 0; column < first.columns; ++column) {
      b[k * first.columns + column] =
          number_of(first.from ? right.column_number(k, column) : right.row_number(column, k), first.half);
    }
  }
  std::vector<float> out(first.columns);
  for (int row = 0; row < 16; ++row) {
    std::fill(out.begin(), out.end(), 0.0f);
    for (int k = 0; k < 16; ++k) {
      float a;
      if (first.from) {
        const uint32_t both = lanes[row % 8 * 4 + k % 8 / 2]->registers[row / 8 + k / 8 * 2];
        a = number_of(static_cast<uint16_t>(both >> 16 * (k % 2)), first.half);
      } else {
        a = number_of(Operand(first.left).row_number(16 * (warp % 4) + row, k), first.half);
      }
      for (int column = 0; column < first.columns; ++column) out[column] += a * b[k * first.columns + column];
    }
    for (int column = 0; column < first.columns; ++column) {
      float& sum = (*sums[row % 8 * 4 + column % 8 / 2])[column / 8 * 4 + row / 8 * 2 + column % 2];
      sum = first.adds ? sum + out[column] : out[column];
    }
  }
}

inline void product_fence() { sync_warp(); }
inline void product_commit() {
  InFlight::Lane& lane = InFlight::now().lane();
  lane.groups.push_back(std::move(lane.open));
  lane.open.clear();
}

// The registers get what the finished products made of them; nobody may have touched them meanwhile.
inline void hand_over(InFlight::Lane& lane) {
  for (auto each = lane.sums.begin(); each != lane.sums.end();) {
    const auto& [sum, values] = *each;
    const auto uses = [sum = sum](const InFlight::Product& product) { return product.sum == sum; };
    bool busy = std::any_of(lane.open.begin(), lane.open.end(), uses);
    for (const auto& group : lane.groups) busy = busy || std::any_of(group.begin(), group.end(), uses);
    if (busy) {
      ++each;
      continue;
    }
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::bit_cast<uint32_t>(sum[i]) != 0xFFFFFFFFu)
        emulate::fail("sums were written while a product was at them");
    }
    std::memcpy(sum, values.data(), values.size() * sizeof(float));
    each = lane.sums.erase(each);
  }
}

template <int kPending>
void product_wait() {
  InFlight::Lane& mine = InFlight::now().lane();
  if (!mine.open.empty()) emulate::fail("products are waited for that no group holds");
  emulate::meet("product_wait", kAllLanes, &mine, [](void* const* lanes) {
    const auto lane = [&](int i) { return static_cast<InFlight::Lane*>(lanes[i]); };
    const int warp = emulate::self().number / emulate::kLanes;
    for (; lane(0)->groups.size() > kPending;) {
      for (size_t i = 0; i < lane(0)->groups.front().size(); ++i) {
        InFlight::Product* products[32];
        std::vector<float>* sums[32];
        for (int l = 0; l < 32; ++l) {
          if (lane(l)->groups.size() != lane(0)->groups.size())
            emulate::fail("lanes of one warp multiply apart");
          products[l] = &lane(l)->groups.front()[i];
          sums[l] = &lane(l)->sums.at(products[l]->sum);
          const auto& product = *products[l];
          if (product.left != products[0]->left || product.right != products[0]->right)
            emulate::fail("lanes of one warp multiply different operands");
          if (product.from && std::memcmp(product.from, product.registers, sizeof product.registers) != 0)
            emulate::fail("the left side was written while a product was at it");
        }
        multiply(products, sums, warp);
      }
      for (int l = 0; l < 32; ++l) lane(l)->groups.pop_front();
    }
    for (int l = 0; l < 32; ++l) hand_over(*lane(l));
  });
}

template <int kTiles>
void pin(float (&)[kTiles][4]) {}

}  // namespace secl::cuda::hopper
