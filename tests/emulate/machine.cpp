// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "fiber.h"
#include "guarded.h"

#if defined(__x86_64__)
// What a call must keep goes onto this stack and comes from the other; `ret` goes on where that one stopped.
asm(R"(
  .text
  .type secl_emulate_switch, @function
secl_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size secl_emulate_switch, .-secl_emulate_switch
)");
#endif

namespace secl::emulate {
namespace {

constexpr size_t kStack = 128 << 10;

std::string text(dim3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

dim3 index_of(unsigned number, dim3 shape) {
  return dim3(number % shape.x, number / shape.x % shape.y, number / shape.x / shape.y);
}

// One launch: everything that is alive while it runs.
class Launch {
 public:
  Launch(const Grid& grid, const std::function<void()>& body) : grid_(grid), body_(body) {
    const unsigned threads = grid.threads.count(), blocks = grid.cluster.count();
    if (threads == 0 || threads > 1024)
      throw Fault("a block must have 1 to 1024 threads; got " + std::to_string(threads));
    if (grid.blocks.x % grid.cluster.x || grid.blocks.y % grid.cluster.y || grid.blocks.z % grid.cluster.z) {
      throw Fault("a grid must be whole clusters");
    }
    if (const size_t limit = machine().shared_memory_limit; grid.shared > limit)
      throw Fault("a block can have at most " + std::to_string(limit >> 10) + " KiB of shared memory");
    threads_.resize(threads * blocks);
    blocks_.resize(blocks);
    for (unsigned i = 0; i < threads_.size(); ++i) stacks_.push_back(std::make_unique<Guarded>(kStack));
    for (unsigned i = 0; i < blocks; ++i) shared_.push_back(std::make_unique<Shared>(grid.shared));
    fibers_.resize(threads_.size());
  }

  void run();
  void wait(const char* what, const std::function<bool()>& ready);
  [[noreturn]] void fail(const std::string& why);
  Thread& running() { return *running_; }
  Block& block(unsigned rank) { return blocks_.at(rank); }
  bool guards(const void* at) const {
    return std::any_of(shared_.begin(), shared_.end(),
                       [&](const auto& shared) { return shared->guards(at); });
  }
  void escape(const void* at);  // from a signal handler
  void main();                  // of a thread

 private:
  void run_cluster(dim3 first);
  void prepare(dim3 first);
  void schedule();
  void resume(Thread& thread);
  std::string where() const;
  std::string waiting() const;

  Grid grid_;
  const std::function<void()>& body_;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  std::vector<std::unique_ptr<Guarded>> stacks_;
  std::vector<std::unique_ptr<Shared>> shared_;
  std::vector<Fiber> fibers_;
  Fiber scheduler_;
  Thread* running_ = nullptr;
  std::string fault_;
  sigjmp_buf escape_;
};

Launch* current = nullptr;

void enter() { current->main(); }

void on_fault(int signal, siginfo_t* about, void*) {
  if (current != nullptr && current->guards(about->si_addr)) current->escape(about->si_addr);
  ::signal(signal, SIG_DFL);  // not ours: the default action follows when the instruction is tried again
}

// Turns an access to a guard into a Fault while it lives.
class Trap {
 public:
  Trap() : stack_(64 << 10) {
    stack_t alternate = {};
    alternate.ss_sp = stack_.data();
    alternate.ss_size = stack_.size();
    sigaltstack(&alternate, &stack_before_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_);
  }
  ~Trap() {
    sigaction(SIGSEGV, &before_, nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  std::vector<unsigned char> stack_;
  stack_t stack_before_ = {};
  struct sigaction before_ = {};
};

void Launch::main() {
  try {
    body_();
    if (!running_->copies.empty() || !running_->groups.empty())
      fail("a thread returned before its copies arrived");
  } catch (const Fault&) {
  } catch (const std::exception& error) {
    fault_ = error.what();
  }
  running_->returned = true;
  running_->warp().returned |= 1u << running_->lane();
  running_->fiber->leave_for(scheduler_);
}

std::string Launch::where() const {
  if (running_ == nullptr) return "";
  return " (block " + text(running_->block->index) + ", thread " + text(running_->index) + ")";
}

void Launch::fail(const std::string& why) {
  if (fault_.empty()) fault_ = why + where();
  throw Fault(fault_);
}

void Launch::escape(const void* at) {
  const auto* place = static_cast<const unsigned char*>(at);
  const ptrdiff_t offset = place - running_->block->shared;
  fault_ = "an access at byte " + std::to_string(offset) + " of " + std::to_string(grid_.shared) +
           " bytes of shared memory" + where();
  siglongjmp(escape_, 1);
}

void Launch::wait(const char* what, const std::function<bool()>& ready) {
  Thread& thread = *running_;
  thread.waits_for = what;
  thread.ready = &ready;
  thread.fiber->leave_for(scheduler_);
  if (!fault_.empty()) throw Fault(fault_);
}

void Launch::resume(Thread& thread) {
  running_ = &thread;
  machine().idle = false;
  thread.waits_for = nullptr;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  scheduler_.leave_for(*thread.fiber);
  running_ = nullptr;
}

std::string Launch::waiting() const {
  std::map<std::string, unsigned> count;
  for (const Thread& thread : threads_)
    ++count[thread.returned ? "have returned" : std::string("wait at ") + thread.waits_for];
  std::string list;
  for (const auto& [what, many] : count)
    list += (list.empty() ? "" : ", ") + std::to_string(many) + " threads " + what;
  return list;
}

void Launch::schedule() {
  if (sigsetjmp(escape_, 1) != 0) return;
  // A thread that lets all others go first goes on in a second idle round.
  for (int idle = 0; idle < 2 && fault_.empty(); ++idle) {
    machine().idle = idle > 0;
    // One warp as far as it comes before the next: what a barrier is missing for is then found most often.
    for (size_t first = 0; first < threads_.size(); first += kLanes) {
      for (bool moved = true; moved && fault_.empty();) {
        moved = false;
        for (size_t i = first; i < std::min(threads_.size(), first + kLanes) && fault_.empty(); ++i) {
          Thread& thread = threads_[machine().reversed ? threads_.size() - 1 - i : i];
          if (thread.returned || (thread.waits_for != nullptr && !(*thread.ready)())) continue;
          moved = true;
          idle = -1;
          resume(thread);
        }
      }
    }
  }
  const bool done =
      std::all_of(threads_.begin(), threads_.end(), [](const Thread& thread) { return thread.returned; });
  if (!done && fault_.empty()) fault_ = "deadlock in block " + text(blocks_[0].index) + ": " + waiting();
}

void Launch::prepare(dim3 first) {
  const unsigned threads = grid_.threads.count();
  for (unsigned rank = 0; rank < blocks_.size(); ++rank) {
    const dim3 at = index_of(rank, grid_.cluster);
    Block fresh;
    fresh.index = dim3(first.x + at.x, first.y + at.y, first.z + at.z);
    fresh.rank = rank;
    shared_[rank]->poison();
    fresh.shared = shared_[rank]->place();
    fresh.shared_bytes = grid_.shared;
    fresh.warps.resize((threads + kLanes - 1) / kLanes);
    blocks_[rank] = std::move(fresh);
  }
  for (unsigned i = 0; i < threads_.size(); ++i) {
    Thread fresh;
    fresh.number = i % threads;
    fresh.index = index_of(fresh.number, grid_.threads);
    fresh.block = &blocks_[i / threads];
    fresh.fiber = &fibers_[i];
    threads_[i] = std::move(fresh);
    fibers_[i].start(stacks_[i]->begin(), kStack, enter);
  }
}

void Launch::run_cluster(dim3 first) {
  prepare(first);
  schedule();
  for (unsigned rank = 0; rank < blocks_.size() && fault_.empty(); ++rank) {
    if (!shared_[rank]->intact())
      fault_ = "a write beyond shared memory in block " + text(blocks_[rank].index);
  }
  if (!fault_.empty()) throw Fault("emulated kernel: " + fault_);
}

void Launch::run() {
  const Trap trap;
  const dim3 shape(grid_.blocks.x / grid_.cluster.x, grid_.blocks.y / grid_.cluster.y,
                   grid_.blocks.z / grid_.cluster.z);
  blockDim = grid_.threads;
  gridDim = grid_.blocks;
  for (unsigned i = 0; i < shape.count(); ++i) {
    const dim3 at = index_of(machine().reversed ? shape.count() - 1 - i : i, shape);
    run_cluster(dim3(at.x * grid_.cluster.x, at.y * grid_.cluster.y, at.z * grid_.cluster.z));
  }
}

}  // namespace

Machine& machine() {
  static Machine only;
  return only;
}

Thread& self() { return current->running(); }

Block& block_of_cluster(unsigned rank) { return current->block(rank); }

void run(const Grid& grid, const std::function<void()>& body) {
  Launch launch(grid, body);
  ++machine().launches;
  current = &launch;
  struct Reset {
    ~Reset() { current = nullptr; }
  } reset;
  launch.run();
}

void wait_until(const char* what, const std::function<bool()>& ready) {
  if (!ready()) current->wait(what, ready);
}

void fail(const std::string& why) { current->fail(why); }

void check_shared(const char* what, const void* place, size_t bytes, size_t alignment) {
  const Block& block = *self().block;
  const auto* at = static_cast<const unsigned char*>(place);
  if (at < block.shared || at + bytes > block.shared + block.shared_bytes) {
    fail(std::string(what) + " reaches outside the block's shared memory");
  }
  if (static_cast<size_t>(at - block.shared) % alignment != 0) {
    fail(std::string(what) + " needs a place on a multiple of " + std::to_string(alignment) + " bytes");
  }
}

void meet(const char* name, uint32_t mask, void* mine, const std::function<void(void* const*)>& work) {
  Thread& thread = self();
  Warp& warp = thread.warp();
  const uint32_t bit = 1u << thread.lane();
  if ((mask & bit) == 0) fail(std::string(name) + ": a lane calls that is not in the mask");
  if (warp.returned & mask) fail(std::string(name) + ": waits for a lane that has returned");
  auto found = std::find_if(warp.meetings.begin(), warp.meetings.end(),
                            [&](const Meeting& m) { return m.mask & mask; });
  if (found == warp.meetings.end()) {
    warp.meetings.push_back(Meeting{name, mask});
    found = warp.meetings.end() - 1;
  }
  if (found->mask != mask || std::strcmp(found->name, name) != 0) {
    fail(std::string("lanes of one warp part: ") + name + " here, " + found->name + " there");
  }
  bool met = false;
  found->lane[thread.lane()] = mine;
  found->met[thread.lane()] = &met;
  found->arrived |= bit;
  if (found->arrived != mask) return wait_until(name, [&met] { return met; });
  const Meeting all = *found;
  warp.meetings.erase(found);
  work(all.lane);
  for (bool* each : all.met) {
    if (each != nullptr) *each = true;
  }
}

void arrive(const char* name, int id, unsigned threads, bool waits) {
  Barrier& barrier = self().block->barriers[id];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads) {
    fail(std::string(name) + ": barrier " + std::to_string(id) + " for " + std::to_string(threads) +
         " threads here, " + std::to_string(barrier.expected) + " there");
  }
  const uint64_t phase = barrier.phase;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.phase;
  } else if (waits) {
    wait_until(name, [&barrier, phase] { return barrier.phase != phase; });
  }
}

}  // namespace secl::emulate
