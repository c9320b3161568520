// SPDX-License-Identifier: Apache-2.0
// The one seam between the kernels and threads: torch's pool, or std::thread where a sanitizer watches.
//
// ThreadSanitizer does not see how the OpenMP runtime inside torch synchronises and would call every join a
// race.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#ifdef SECL_SANITIZE
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace secl {

// Threads that one call may use; torch.set_num_threads sets it.
inline int64_t worker_count() { return torch::stable::get_num_threads(); }

// Work that repays a thread's start, in numbers read and written once: some 20 microseconds. Where the cores
// are busy with other programs a start can take a thousand times as long, which no small call should wait
// for.
#ifdef SECL_SANITIZE
constexpr int64_t kWork = 1;
#else
constexpr int64_t kWork = 1 << 15;
#endif

// Threads that this much work repays.
inline int64_t worker_count(int64_t work) {
  return std::clamp<int64_t>(work / kWork, 1, std::max<int64_t>(worker_count(), 1));
}

// The work of multiplying rows with columns.
inline int64_t product_work(int64_t rows, int64_t columns, int64_t depth) {
  constexpr int64_t kProducts = 16;  // in the time of one number
  return rows * columns / kProducts * depth;
}

// Items of this much work each that repay a thread's start.
inline int64_t grain(int64_t work) { return std::max<int64_t>(1, kWork / std::max<int64_t>(work, 1)); }

#ifdef SECL_SANITIZE

// Runs body(from, to) over pieces of [begin, end) of at least `grain`, on one thread each.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (end <= begin) return;
  const int64_t most = (end - begin + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  const int64_t pieces = std::min(worker_count(), most), size = (end - begin + pieces - 1) / pieces;
  std::exception_ptr failure;
  std::mutex guard;
  std::vector<std::thread> threads;
  for (int64_t from = begin; from < end; from += size) {
    threads.emplace_back([&, from] {
      try {
        body(from, std::min(from + size, end));
      } catch (...) {
        const std::lock_guard<std::mutex> held(guard);
        failure = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

#else

// Runs body(from, to) over pieces of [begin, end) of at least `grain`, each by one thread of torch's pool.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  torch::stable::parallel_for(begin, end, grain, body);
}

#endif

// Runs body(worker, item) for every item; which worker takes it never shows in the result.
template <class Body>
void for_each(int64_t items, int64_t workers, const Body& body) {
  workers = std::min(workers, items);
  if (workers <= 1) {
    for (int64_t item = 0; item < items; ++item) body(0, item);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t item = next++; item < items; item = next++) body(worker, item);
    }
  });
}

}  // namespace secl
