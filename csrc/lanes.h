// SIMD lanes for the CPU: GCC vector types of the width this file is compiled for, with the few
// operations that the functors need. A functor written for a number R = float works unchanged for
// R = Lanes<float>, one chain a lane. Only the 32×32→64 multiply and the root need intrinsics.
#pragma once
#include "hd.h"

#ifndef __CUDACC__
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace PYSAMP_NS {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

typedef float F32 __attribute__((vector_size(kVectorBytes)));
typedef double F64 __attribute__((vector_size(kVectorBytes)));
typedef int32_t I32 __attribute__((vector_size(kVectorBytes)));
typedef int64_t I64 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));
typedef uint64_t U64 __attribute__((vector_size(kVectorBytes)));

template <class S> struct LanesOf;
template <> struct LanesOf<float> {
  using Type = F32;
};
template <> struct LanesOf<double> {
  using Type = F64;
};
template <class S> using Lanes = typename LanesOf<S>::Type;
template <class S> inline constexpr int kLanes = kVectorBytes / int(sizeof(S));

template <> struct Traits<F32> {
  using Scalar = float;
  using Int = I32;
  using Word = U32;
};
template <> struct Traits<F64> {
  using Scalar = double;
  using Int = I64;
  using Word = U64;
};

HD I32 bits(F32 x) { return (I32)x; }
HD I64 bits(F64 x) { return (I64)x; }
HD F32 from_bits(I32 x) { return (F32)x; }
HD F64 from_bits(I64 x) { return (F64)x; }
HD F32 select(I32 m, F32 a, F32 b) { return m ? a : b; }
HD F64 select(I64 m, F64 a, F64 b) { return m ? a : b; }
HD F32 to_real(I32 i) { return __builtin_convertvector(i, F32); }
HD F64
to_real(I64 i) {  // |i| < 2^51: through the mantissa of 1.5·2^52, since AVX2 has no instruction
  const F64 magic = F64{} + 0x1.8p+52;
  return (F64)((I64)magic + i) - magic;
}

HD F32 sqrt_rn(F32 x) {
#if defined(__AVX512F__)
  return (F32)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F32)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (F32)_mm_sqrt_ps((__m128)x);
#else
  for (int l = 0; l < kLanes<float>; ++l) x[l] = __builtin_sqrtf(x[l]);
  return x;
#endif
}
HD F64 sqrt_rn(F64 x) {
#if defined(__AVX512F__)
  return (F64)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (F64)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (F64)_mm_sqrt_pd((__m128d)x);
#else
  for (int l = 0; l < kLanes<double>; ++l) x[l] = __builtin_sqrt(x[l]);
  return x;
#endif
}

// The low halves of the 64-bit lanes multiplied: compilers do not find this instruction by themselves.
HD U64 multiply_low(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffull) * (b & 0xffffffffull);
#endif
}

HD U64 xor3(U64 a, U64 b, U64 c) {
#if defined(__AVX512F__)
  return (U64)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// 32-bit lanes from their even and odd halves, each in the low half of a 64-bit lane.
HD U32 interleave(U64 even, U64 odd) {
#if defined(__AVX512F__)
  return (U32)_mm512_mask_shuffle_epi32((__m512i)even, 0xaaaa, (__m512i)odd, _MM_PERM_CCAA);
#else
  return (U32)((even & 0xffffffffull) | (odd << 32));
#endif
}

template <class S> HD Lanes<S> load_lanes(const S* p) {  // p need not be aligned
  Lanes<S> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class S> HD void store_lanes(S* p, Lanes<S> v) { std::memcpy(p, &v, sizeof(v)); }

// p[index[l]] in lane l.
template <class S> HD Lanes<S> gather_lanes(const S* p, const int32_t* index) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (sizeof(S) == 4)
    return (F32)_mm512_i32gather_ps(_mm512_loadu_si512(index), p, 4);
  else
    return (F64)_mm512_i32gather_pd(_mm256_loadu_si256((const __m256i*)index), p, 8);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4)
    return (F32)_mm256_i32gather_ps((const float*)p, _mm256_loadu_si256((const __m256i*)index), 4);
  else
    return (F64)_mm256_i32gather_pd((const double*)p, _mm_loadu_si128((const __m128i*)index), 8);
#else
  Lanes<S> v;
  for (int l = 0; l < kLanes<S>; ++l) v[l] = p[index[l]];
  return v;
#endif
}

// Transpose kLanes vectors of kLanes numbers in registers: at distance h, the lanes with bit h of one
// vector change places with those without it of its partner.
template <class S, int h> HD void exchange(Lanes<S>* v) {
  constexpr int W = kLanes<S>;
  Int<Lanes<S>> low, high;
  UNROLL16 for (int l = 0; l < W; ++l) {
    low[l] = l & h ? W + l - h : l;
    high[l] = l & h ? W + l : l + h;
  }
  UNROLL16 for (int r = 0; r < W; ++r) {
    if (r & h) continue;
    const Lanes<S> a = v[r], b = v[r + h];
    v[r] = __builtin_shuffle(a, b, low);
    v[r + h] = __builtin_shuffle(a, b, high);
  }
  if constexpr (h > 1) exchange<S, h / 2>(v);
}
template <class S> HD void transpose(Lanes<S>* v) { exchange<S, kLanes<S> / 2>(v); }

}  // namespace PYSAMP_NS
#endif
