// The HD macro, and the few operations on numbers that host and device spell differently. lanes.h
// gives the same operations for SIMD lanes, maths.h the functions written once over both.
#pragma once
#include <cstdint>
#include <cstring>

// INLINE stands behind the parameters of a lambda: a loop body that is called instead of inlined costs a
// third of a Metropolis sweep.
#ifdef __CUDACC__
#define HD __host__ __device__ __forceinline__
#define INLINE
#define UNROLL _Pragma("unroll")
#else
#define HD inline __attribute__((always_inline))
#define INLINE __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL16 _Pragma("GCC unroll 16")
#endif

// Each instruction-set level has a namespace of its own, so that no symbol of one can serve another.
#ifndef PYSAMP_NS
#define PYSAMP_NS pysamp_base
#endif

namespace PYSAMP_NS {

// Real numbers R are float, double or a vector of them; Traits<R> names what belongs to R.
template <class R> struct Traits;
template <> struct Traits<float> {
  using Scalar = float;
  using Int = int32_t;
  using Word = uint32_t;  // the unsigned integer of the same size
};
template <> struct Traits<double> {
  using Scalar = double;
  using Int = int64_t;
  using Word = uint64_t;
};
template <class R> using Scalar = typename Traits<R>::Scalar;
template <class R> using Int = typename Traits<R>::Int;
template <class R> using Word = typename Traits<R>::Word;

HD int32_t bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_int(x);
#else
  int32_t i;
  std::memcpy(&i, &x, 4);
  return i;
#endif
}
HD int64_t bits(double x) {
#ifdef __CUDA_ARCH__
  return __double_as_longlong(x);
#else
  int64_t i;
  std::memcpy(&i, &x, 8);
  return i;
#endif
}
HD float from_bits(int32_t i) {
#ifdef __CUDA_ARCH__
  return __int_as_float(i);
#else
  float x;
  std::memcpy(&x, &i, 4);
  return x;
#endif
}
HD double from_bits(int64_t i) {
#ifdef __CUDA_ARCH__
  return __longlong_as_double(i);
#else
  double x;
  std::memcpy(&x, &i, 8);
  return x;
#endif
}

HD float select(bool m, float a, float b) { return m ? a : b; }
HD double select(bool m, double a, double b) { return m ? a : b; }

// Correctly rounded square roots (IEEE); the reference reaches the same value by other means.
HD float sqrt_rn(float x) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
HD double sqrt_rn(double x) {
#ifdef __CUDA_ARCH__
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// Small integers to reals: exact, and free of 64-bit conversions that old instruction sets lack.
HD float to_real(int32_t i) { return static_cast<float>(i); }
HD double to_real(int64_t i) { return static_cast<double>(i); }

}  // namespace PYSAMP_NS
