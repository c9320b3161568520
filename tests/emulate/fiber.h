// SPDX-License-Identifier: Apache-2.0
// A place where one real thread can stop and go on: a few instructions where the machine is known, for the
// system's own way asks the kernel twice at each switch.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace secl::emulate {

#if defined(__x86_64__)

extern "C" void secl_emulate_switch(void** save, void* load);

class Fiber {
 public:
  void start(unsigned char* stack, size_t bytes, void (*entry)()) {
    auto* top = reinterpret_cast<uintptr_t*>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
    *--top = 0;  // where entry would return to
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    at_ = top;
  }
  // Goes on with `to`; returns when something goes on with this.
  void leave_for(Fiber& to) { secl_emulate_switch(&at_, to.at_); }

 private:
  void* at_ = nullptr;
};

#else

class Fiber {
 public:
  void start(unsigned char* stack, size_t bytes, void (*entry)()) {
    getcontext(&at_);
    at_.uc_stack.ss_sp = stack;
    at_.uc_stack.ss_size = bytes;
    at_.uc_link = nullptr;
    makecontext(&at_, entry, 0);
  }
  void leave_for(Fiber& to) { swapcontext(&at_, &to.at_); }

 private:
  ucontext_t at_;
};

#endif

}  // namespace secl::emulate
