// SPDX-License-Identifier: Apache-2.0
// The one seam between the kernels and threads: torch's pool, or std::thread where a sanitizer watches.
//
// ThreadSanitizer does not see how the OpenMP runtime inside torch synchronises and would call every join a
// race.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#ifdef SECL_SANITIZE
#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace secl {

// Threads that one call may use; torch.set_num_threads sets it.
inline int64_t worker_count() { return torch::stable::get_num_threads(); }

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

}  // namespace secl
