// What the kernels need of a GPU: numbers of every type, wide reads, atomic sums.
//
// Without nvcc the kernels are compiled against a stand-in that runs their threads on the CPU, for tests.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "../emulated_cuda.h"
#endif

#include <cstdint>
#include <cstring>

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// A block's shared memory.
#if defined(__CUDACC__)
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
#endif

// The type of sums, points and weights for values of type S.
template <typename S>
struct RealOf {
  using Type = float;
};
template <>
struct RealOf<double> {
  using Type = double;
};
template <typename S>
using Real = typename RealOf<S>::Type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

__device__ __forceinline__ void narrow(float x, float* to) { *to = x; }
__device__ __forceinline__ void narrow(double x, double* to) { *to = x; }
__device__ __forceinline__ void narrow(float x, BFloat16* to) {
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ void narrow(float x, Float16* to) { to->bits = __half_as_ushort(__float2half_rn(x)); }

// Four numbers that shared memory gives in one read (two for float64).
template <typename T>
struct alignas(16) Four {
  T at[4];
};

template <int bytes>
struct WordOf;
template <>
struct WordOf<16> {
  using Type = uint4;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<4> {
  using Type = unsigned int;
};
template <>
struct WordOf<2> {
  using Type = unsigned short;
};

// Read `width` neighbouring channels at once; the address must be a multiple of their size.
template <typename S, int width>
__device__ __forceinline__ void read(const S* from, Real<S> (&to)[width]) {
  using Word = typename WordOf<static_cast<int>(sizeof(S)) * width>::Type;
  const Word word = __ldg(reinterpret_cast<const Word*>(from));
  S parts[width];
  memcpy(parts, &word, sizeof(word));
#pragma unroll
  for (int i = 0; i < width; ++i) to[i] = widen(parts[i]);
}

template <typename S, int width>
__device__ __forceinline__ void write(const Real<S> (&from)[width], S* to) {
  using Word = typename WordOf<static_cast<int>(sizeof(S)) * width>::Type;
  S parts[width];
#pragma unroll
  for (int i = 0; i < width; ++i) narrow(from[i], &parts[i]);
  Word word;
  memcpy(&word, parts, sizeof(word));
  __stcg(reinterpret_cast<Word*>(to), word);  // an assignment would be cut into stores of 4 bytes
}

// Add scale * x to `width` neighbouring numbers, each atomically. Since Hopper four (or two) of them go in one request.
template <typename T, int width>
__device__ __forceinline__ void add_scaled(T* to, T scale, const T (&x)[width]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 4 && width % 4 == 0) {
#pragma unroll
    for (int i = 0; i < width; i += 4) {
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + i), "f"(scale * x[i]),
                   "f"(scale * x[i + 1]), "f"(scale * x[i + 2]), "f"(scale * x[i + 3])
                   : "memory");
    }
    return;
  } else if constexpr (sizeof(T) == 4 && width == 2) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(scale * x[0]), "f"(scale * x[1]) : "memory");
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < width; ++i) atomicAdd(to + i, scale * x[i]);
}

}  // namespace
