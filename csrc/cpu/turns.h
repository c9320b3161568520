// SPDX-License-Identifier: Apache-2.0
// Tasks that add to shared sums: each sum takes its tasks in list order, so that the result depends neither
// on the number of threads nor on who was fast.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "parallel.h"

namespace secl {

// One task and the one or two sums that it adds to.
struct Turn {
  int64_t row, column;             // what the task is about
  std::array<int64_t, 2> owners;   // the sums; twice the same where there is one
  std::array<int64_t, 2> tickets;  // how many tasks each sum takes before this one
};

class TurnList {
 public:
  explicit TurnList(int64_t owners) : taken_(owners, 0) {}

  void add(int64_t row, int64_t column, int64_t owner, int64_t other) {
    Turn turn{row, column, {owner, other}, {taken_[owner], taken_[other]}};
    ++taken_[owner];
    if (other != owner) ++taken_[other];
    turns_.push_back(turn);
  }

  // Runs body(worker, turn) for every task. Workers take the tasks in list order, so that whoever is waited
  // for is running already.
  template <class Body>
  void run(int64_t workers, const Body& body) const {
    std::vector<std::atomic<int64_t>> done(taken_.size());
    for_each(static_cast<int64_t>(turns_.size()), workers, [&](int64_t worker, int64_t item) {
      const Turn& turn = turns_[item];
      for (int k = 0; k < 2; ++k) {
        while (done[turn.owners[k]].load(std::memory_order_acquire) != turn.tickets[k])
          std::this_thread::yield();
      }
      body(worker, turn);
      for (int k = 0; k < 2; ++k) {
        done[turn.owners[k]].store(turn.tickets[k] + 1, std::memory_order_release);
      }
    });
  }

 private:
  std::vector<int64_t> taken_;
  std::vector<Turn> turns_;
};

}  // namespace secl
