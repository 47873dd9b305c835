// Vectors of the width that this translation unit is compiled for, in the compiler's own vector types (GCC, Clang).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Keeps the compiler from copying large functions into every caller.
#define DINOMED_SEPARATE __attribute__((noinline))

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int count = kBytes / 4;
  using Int = int32_t;
  typedef float Vec __attribute__((vector_size(kBytes)));
  typedef int32_t IntVec __attribute__((vector_size(kBytes)));
  typedef float Loose __attribute__((vector_size(kBytes), aligned(4), may_alias));
};
template <>
struct Lanes<double> {
  static constexpr int count = kBytes / 8;
  using Int = int64_t;
  typedef double Vec __attribute__((vector_size(kBytes)));
  typedef int64_t IntVec __attribute__((vector_size(kBytes)));
  typedef double Loose __attribute__((vector_size(kBytes), aligned(8), may_alias));
};

template <typename T>
using Vec = typename Lanes<T>::Vec;
template <typename T>
using IntVec = typename Lanes<T>::IntVec;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// ---- one number ----
inline float to_real(float x) { return x; }
inline double to_real(double x) { return x; }
inline float to_real(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
inline float to_real(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 31u, mantissa = x.bits & 1023u;
  if (exponent == 0) return float_of(bits_of(static_cast<float>(mantissa) * 0x1p-24f) | sign);
  return float_of(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13);
}

inline void from_real(float x, float* to) { *to = x; }
inline void from_real(double x, double* to) { *to = x; }
inline void from_real(float x, BFloat16* to) {
  const uint32_t bits = bits_of(x);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline void from_real(float x, Float16* to) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u, bits = bits_of(x) & 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00;
  } else if (bits >= 0x47800000u) {
    half = 0x7c00;
  } else if (bits < 0x38800000u) {  // subnormal: adding 0.5 rounds to multiples of 2^-24
    half = bits_of(float_of(bits) + 0.5f) - bits_of(0.5f);
  } else {
    half = (bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

// ---- whole vectors ----
template <typename T>
inline Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Lanes<T>::Loose*>(from);
}
template <typename T>
inline void store(T* to, Vec<T> x) {
  *reinterpret_cast<typename Lanes<T>::Loose*>(to) = x;
}
template <typename T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}

inline Vec<float> load_value(const float* from) { return load(from); }
inline Vec<double> load_value(const double* from) { return load(from); }
inline void store_value(float* to, Vec<float> x) { store(to, x); }
inline void store_value(double* to, Vec<double> x) { store(to, x); }

#if defined(__AVX512F__)
inline Vec<float> load_value(const BFloat16* from) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return reinterpret_cast<Vec<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline Vec<float> load_value(const Float16* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void store_value(Float16* to, Vec<float> x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_value(BFloat16* to, Vec<float> x) {
  const __m512i bits = reinterpret_cast<__m512i>(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), is_nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
}
inline Vec<float> load_some(const BFloat16* from, int count) {
  const __m256i raw = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), from);
  return reinterpret_cast<Vec<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline Vec<float> load_some(const Float16* from, int count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), from));
}
template <typename Half>
inline void store_some_half(Half* to, Vec<float> x, int count) {
  Half whole[16];
  store_value(whole, x);
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(whole));
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), raw);
}
inline void store_some(BFloat16* to, Vec<float> x, int count) { store_some_half(to, x, count); }
inline void store_some(Float16* to, Vec<float> x, int count) { store_some_half(to, x, count); }
inline Vec<float> load_some(const float* from, int count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}
inline void store_some(float* to, Vec<float> x, int count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
}
#elif defined(__AVX2__)
inline Vec<float> load_value(const BFloat16* from) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Vec<float>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline Vec<float> load_value(const Float16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void store_value(Float16* to, Vec<float> x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_value(BFloat16* to, Vec<float> x) {
  float whole[Lanes<float>::count];
  store(whole, x);
  for (int lane = 0; lane < Lanes<float>::count; ++lane) from_real(whole[lane], to + lane);
}
inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec<float> load_some(const float* from, int count) { return _mm256_maskload_ps(from, first_lanes(count)); }
inline void store_some(float* to, Vec<float> x, int count) { _mm256_maskstore_ps(to, first_lanes(count), x); }
#else
template <typename Half>
inline Vec<float> load_value(const Half* from) {
  float whole[Lanes<float>::count];
  for (int lane = 0; lane < Lanes<float>::count; ++lane) whole[lane] = to_real(from[lane]);
  return load(whole);
}
template <typename Half>
inline void store_value(Half* to, Vec<float> x) {
  float whole[Lanes<float>::count];
  store(whole, x);
  for (int lane = 0; lane < Lanes<float>::count; ++lane) from_real(whole[lane], to + lane);
}
#endif

// ---- the first `count` lanes, the rest read as zero and left unwritten ----
template <typename Other>
inline auto load_some(const Other* from, int count) {
  using T = decltype(to_real(Other{}));
  T whole[Lanes<T>::count] = {};
#pragma GCC unroll 1
  for (int lane = 0; lane < count; ++lane) whole[lane] = to_real(from[lane]);
  return load(whole);
}
template <typename Other, typename V>
inline void store_some(Other* to, V x, int count) {
  using T = decltype(to_real(Other{}));
  T whole[Lanes<T>::count];
  store(whole, x);
#pragma GCC unroll 1
  for (int lane = 0; lane < count; ++lane) from_real(whole[lane], to + lane);
}

template <typename S>
inline auto load_up_to(const S* from, int count) {
  return count >= Lanes<decltype(to_real(S{}))>::count ? load_value(from) : load_some(from, count);
}
template <typename S, typename V>
inline void store_up_to(S* to, V x, int count) {
  if (count >= static_cast<int>(sizeof(V) / sizeof(x[0]))) {
    store_value(to, x);
  } else {
    store_some(to, x, count);
  }
}

// Split interleaved x, y, x, y, ... of two vectors into the x and the y, and the reverse.
template <typename T>
inline void deinterleave(Vec<T> low, Vec<T> high, Vec<T>* even, Vec<T>* odd) {
  constexpr int n = Lanes<T>::count;
  if constexpr (n == 16) {
    *even = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *odd = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (n == 8) {
    *even = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
    *odd = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
  } else if constexpr (n == 4) {
    *even = __builtin_shufflevector(low, high, 0, 2, 4, 6);
    *odd = __builtin_shufflevector(low, high, 1, 3, 5, 7);
  } else {
    *even = __builtin_shufflevector(low, high, 0, 2);
    *odd = __builtin_shufflevector(low, high, 1, 3);
  }
}
template <typename T>
inline void interleave(Vec<T> even, Vec<T> odd, Vec<T>* low, Vec<T>* high) {
  constexpr int n = Lanes<T>::count;
  if constexpr (n == 16) {
    *low = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *high = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (n == 8) {
    *low = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
    *high = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
  } else if constexpr (n == 4) {
    *low = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
    *high = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
  } else {
    *low = __builtin_shufflevector(even, odd, 0, 2);
    *high = __builtin_shufflevector(even, odd, 1, 3);
  }
}

// Lane i of the result is the sum of all lanes of part[i]: log2(n) rounds, each halving the number of vectors.
// `part` is destroyed.
template <typename T>
inline __attribute__((always_inline)) Vec<T> sum_lanes_of_each(Vec<T>* part) {
  constexpr int n = Lanes<T>::count;
  if constexpr (n == 16) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      part[i] =
          __builtin_shufflevector(part[i], part[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
          __builtin_shufflevector(part[i], part[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      part[i] =
          __builtin_shufflevector(part[i], part[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
          __builtin_shufflevector(part[i], part[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      part[i] =
          __builtin_shufflevector(part[i], part[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
          __builtin_shufflevector(part[i], part[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    return __builtin_shufflevector(part[0], part[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(part[0], part[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  } else if constexpr (n == 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      part[i] = __builtin_shufflevector(part[i], part[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                __builtin_shufflevector(part[i], part[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      part[i] = __builtin_shufflevector(part[i], part[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
                __builtin_shufflevector(part[i], part[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return __builtin_shufflevector(part[0], part[1], 0, 8, 2, 10, 4, 12, 6, 14) +
           __builtin_shufflevector(part[0], part[1], 1, 9, 3, 11, 5, 13, 7, 15);
  } else if constexpr (n == 4) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      part[i] = __builtin_shufflevector(part[i], part[i + 2], 0, 1, 4, 5) +
                __builtin_shufflevector(part[i], part[i + 2], 2, 3, 6, 7);
    }
    return __builtin_shufflevector(part[0], part[1], 0, 4, 2, 6) +
           __builtin_shufflevector(part[0], part[1], 1, 5, 3, 7);
  } else {
    return __builtin_shufflevector(part[0], part[1], 0, 2) + __builtin_shufflevector(part[0], part[1], 1, 3);
  }
}

}  // namespace
