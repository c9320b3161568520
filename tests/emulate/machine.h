// SPDX-License-Identifier: Apache-2.0
// The emulated GPU: runs a grid cluster after cluster, each CUDA thread on a stack of its own, switching only
// where a thread waits for others. One real thread, so that every run is the same; what a race would need is
// order, and that can be reversed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
  constexpr unsigned count() const { return x * y * z; }
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs

namespace secl::emulate {

constexpr unsigned kLanes = 32;

// A kernel did what a GPU would answer with a hang, a wrong result or an abort.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Grid {
  dim3 blocks, threads;
  size_t shared = 0;
  dim3 cluster = dim3(1, 1, 1);
};

struct Barrier {
  unsigned arrived = 0, expected = 0;
  uint64_t phase = 0;
};

// Lanes of one warp that met at one collective; each brings a pointer to what it gives and takes.
struct Meeting {
  const char* name;
  uint32_t mask;
  uint32_t arrived = 0;
  void* lane[kLanes] = {};
  bool* met[kLanes] = {};
};

struct Warp {
  std::vector<Meeting> meetings;  // of disjoint masks
  uint32_t returned = 0;          // lanes whose kernel has returned
};

struct Block {
  dim3 index;
  unsigned rank = 0;  // in its cluster
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<Warp> warps;
  Barrier barriers[16];
};

struct Copy {
  unsigned char* to;
  size_t size;
  unsigned char bytes[16];
};

class Fiber;

struct Thread {
  dim3 index;
  unsigned number = 0;  // in its block
  Block* block = nullptr;
  Fiber* fiber = nullptr;
  bool returned = false;
  const char* waits_for = nullptr;               // null: can run
  const std::function<bool()>* ready = nullptr;  // asked before a waiting thread runs again
  std::vector<Copy> copies;                      // not yet committed
  std::deque<std::vector<Copy>> groups;          // committed, not yet waited for

  unsigned lane() const { return number % kLanes; }
  Warp& warp() const { return block->warps[number / kLanes]; }
};

// What the emulated GPU is told to do, and what it has seen.
struct Machine {
  bool reversed = false;  // last block first, last thread first
  int32_t multiprocessors = 4;
  int32_t capability = 80;
  int32_t shared_memory_limit = 227 << 10;
  uint64_t launches = 0;
  int64_t bytes_read = 0;   // by read_input
  int64_t most_copies = 0;  // bulk copies that were under way at once in a block
  bool idle = false;        // no thread could run in the round before
};
Machine& machine();

// The thread that runs, and the other blocks of its cluster.
Thread& self();
Block& block_of_cluster(unsigned rank);

// Runs `body` in every thread of the grid; throws a Fault that says what went wrong, where.
void run(const Grid& grid, const std::function<void()>& body);

// Lets other threads run until ready() is true; if none can run any more, the launch fails and names what
// each waits for.
void wait_until(const char* what, const std::function<bool()>& ready);

// Ends the launch with a Fault.
[[noreturn]] void fail(const std::string& why);

// Fails unless [place, place + bytes) lies in the block's shared memory, on a multiple of `alignment`.
void check_shared(const char* what, const void* place, size_t bytes, size_t alignment);

// Meets the lanes of `mask`; the last one to arrive calls work(lanes), with null for a lane outside the mask.
void meet(const char* name, uint32_t mask, void* mine, const std::function<void(void* const*)>& work);

void arrive(const char* name, int id, unsigned threads, bool waits);

}  // namespace secl::emulate
