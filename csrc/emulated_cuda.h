// A stand-in for CUDA that runs a kernel's threads on the CPU, one after the other, to test kernels without a GPU.
//
// A thread runs until it meets a barrier or an exchange among the lanes of its warp, then the next one runs. Lanes of a
// warp that meet different ones, or leave before the others, end the program, as do reads beyond shared memory under a
// sanitizer. What it cannot show: races between warps, wrong addresses of real devices, and speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::exp;
using std::fma;
using std::min;

namespace {

struct Emulator {
  enum class State { ready, at_warp, at_block, done };
  struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    State state = State::ready;
    const char* at = "";
    int exchanges = 0;
  };
  std::vector<Thread> threads;
  std::vector<unsigned char> exchanged;  // two buffers of 16 bytes a thread, used in turn
  std::unique_ptr<char, void (*)(void*)> shared{nullptr, std::free};
  std::function<void()> body;
  ucontext_t scheduler;
  int current = 0;
  dim3 thread, block, block_size, grid;

  [[noreturn]] void fail(const char* reason, const Thread& one, const Thread& other) {
    std::fprintf(stderr, "emulated CUDA: %s: %s, %s\n", reason, one.at, other.at);
    std::abort();
  }

  void stop(State state, const char* at) {
    threads[current].state = state;
    threads[current].at = at;
    swapcontext(&threads[current].context, &scheduler);
  }

  static void enter();

  void release_warps() {
    for (size_t first = 0; first < threads.size(); first += 32) {
      const Thread& one = threads[first];
      bool all = true;
      for (size_t i = first; i < first + 32; ++i) {
        all = all && threads[i].state == State::at_warp;
        const bool alike = threads[i].state == one.state && std::strcmp(threads[i].at, one.at) == 0;
        if (!alike) fail("lanes of a warp part", one, threads[i]);
      }
      for (size_t i = first; all && i < first + 32; ++i) threads[i].state = State::ready;
    }
  }

  void run_block(size_t shared_bytes) {
    const size_t count = block_size.x;
    shared.reset(static_cast<char*>(std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16)));
    std::memset(shared.get(), 0x7f, (shared_bytes + 15) / 16 * 16);  // huge as any type
    threads.resize(count);
    exchanged.assign(count * 32, 0);
    for (Thread& one : threads) {
      one.stack.resize(256 * 1024);
      one.state = State::ready;
      one.exchanges = 0;
      getcontext(&one.context);
      one.context.uc_stack.ss_sp = one.stack.data();
      one.context.uc_stack.ss_size = one.stack.size();
      one.context.uc_link = &scheduler;
      makecontext(&one.context, &Emulator::enter, 0);
    }
    for (;;) {
      bool ran = false;
      for (size_t i = 0; i < count; ++i) {
        if (threads[i].state != State::ready) continue;
        ran = true;
        current = static_cast<int>(i);
        thread.x = static_cast<unsigned>(i);
        swapcontext(&scheduler, &threads[i].context);
      }
      release_warps();
      size_t waiting = 0;
      for (const Thread& one : threads) waiting += one.state == State::at_block;
      if (waiting == count) {
        for (Thread& one : threads) one.state = State::ready;
      } else if (!ran) {
        if (waiting > 0) fail("warps of a block part", threads.front(), threads.back());
        return;
      }
    }
  }

  // Give a value to the warp, wait for all lanes, and take one lane's.
  template <typename T>
  void give(T value, const char* at) {
    const int buffer = threads[current].exchanges++ % 2;
    std::memcpy(&exchanged[32 * current + 16 * buffer], &value, sizeof(T));
    stop(State::at_warp, at);
  }
  template <typename T>
  T take(int lane) {
    const int buffer = (threads[current].exchanges + 1) % 2, from = current / 32 * 32 + lane % 32;
    T value;
    std::memcpy(&value, &exchanged[32 * from + 16 * buffer], sizeof(T));
    return value;
  }
};
Emulator emulator;

void Emulator::enter() {
  emulator.body();
  emulator.threads[emulator.current].state = State::done;
  emulator.threads[emulator.current].at = "end";
}

#define threadIdx emulator.thread
#define blockIdx emulator.block
#define blockDim emulator.block_size
#define gridDim emulator.grid

inline char* shared_memory() { return emulator.shared.get(); }
inline void __syncthreads() { emulator.stop(Emulator::State::at_block, "__syncthreads"); }
inline void __syncwarp() { emulator.stop(Emulator::State::at_warp, "__syncwarp"); }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  emulator.give(value, "__shfl_sync");
  return emulator.take<T>(source);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int step) {
  emulator.give(value, "__shfl_down_sync");
  const int lane = emulator.current % 32;
  return lane + step < 32 ? emulator.take<T>(lane + step) : value;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  emulator.give(vote, "__ballot_sync");
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(emulator.take<bool>(lane)) << lane;
  return votes;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <typename T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) std::abort();  // a GPU would trap
  return *from;
}
template <typename T>
void __stcg(T* to, T x) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(T) != 0) std::abort();
  *to = x;
}
template <typename T>
void atomicAdd(T* to, T x) {
  *to += x;
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline _Float16 __ushort_as_half(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline uint16_t __half_as_ushort(_Float16 x) {
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}
inline float __half2float(_Float16 x) { return static_cast<float>(x); }
inline _Float16 __float2half_rn(float x) { return static_cast<_Float16>(x); }
inline uint16_t __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t __bfloat16_as_ushort(uint16_t bits) { return bits; }

struct EmulatedDevice {
  template <typename Tensor>
  explicit EmulatedDevice(const Tensor&) {}

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
              const Arguments&... arguments) const {
    emulator.body = [&] { kernel(arguments...); };
    emulator.block_size.x = static_cast<unsigned>(threads);
    emulator.grid.x = static_cast<unsigned>(std::min<int64_t>(blocks, 7));  // few, so that kernels must go on in steps
    for (emulator.block.x = 0; emulator.block.x < emulator.grid.x; ++emulator.block.x) {
      emulator.run_block(static_cast<size_t>(shared_bytes));
    }
  }
};

}  // namespace
