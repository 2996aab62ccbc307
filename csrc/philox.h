// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011, doi 10.1145/2063384.2063405) and the numbers
// made from its words. Stateless: a number is a function of
//
//   key = seed (64 bits),   counter = [ block, chain, step, stream << 24 | substep ].
//
// A block gives four words, that is four float32 or two float64 numbers. Each formula below is one
// text for a number and for SIMD lanes; pysamp/reference.py states the same in torch, bit for bit.
#pragma once
#include "maths.h"

namespace PYSAMP_NS {

inline constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

// The key with its schedule of ten rounds. CUDA adds as it goes; the CPU reads the sums, which its vector
// instructions can broadcast from memory at no cost.
struct Key {
#ifdef __CUDACC__
  uint32_t start0, start1;
  HD uint32_t k0(int round) const { return start0 + uint32_t(round) * kPhiloxW0; }
  HD uint32_t k1(int round) const { return start1 + uint32_t(round) * kPhiloxW1; }
#else
  uint64_t round0[10], round1[10];
  HD uint64_t k0(int round) const { return round0[round]; }
  HD uint64_t k1(int round) const { return round1[round]; }
#endif
};
HD Key make_key(uint64_t seed) {
  Key key;
#ifdef __CUDACC__
  key.start0 = uint32_t(seed), key.start1 = uint32_t(seed >> 32);
#else
  for (uint32_t r = 0; r < 10; ++r) {
    key.round0[r] = uint32_t(uint32_t(seed) + r * kPhiloxW0);
    key.round1[r] = uint32_t(uint32_t(seed >> 32) + r * kPhiloxW1);
  }
#endif
  return key;
}

template <class W> struct Words {
  W w0, w1, w2, w3;
};

HD Words<uint32_t> philox(const Key& key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(kPhiloxM0) * c0, p1 = uint64_t(kPhiloxM1) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ uint32_t(key.k0(round));
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ uint32_t(key.k1(round));
    c3 = uint32_t(p0);
  }
  return {c0, c1, c2, c3};
}

// ((u >> 9) + ½)·2⁻²³ in (0, 1), exact in float32; 52 bits of two words in float64.
template <class R, class I> HD R unit_from_mantissa(I mantissa) {
  using S = Scalar<R>;
  using C = Constants<S>;
  const R one_to_two = from_bits(mantissa | C::kOne);
  return (one_to_two - S(1)) + (sizeof(S) == 4 ? S(0x1p-24) : S(0x1p-53));
}

// 2u − 1 of the same uniform u, exactly, without the multiplication.
template <class R, class I> HD R signed_unit_from_mantissa(I mantissa) {
  using S = Scalar<R>;
  using C = Constants<S>;
  const R two_to_four = from_bits(mantissa | C::kTwo);
  return (two_to_four - S(3)) + (sizeof(S) == 4 ? S(0x1p-23) : S(0x1p-52));
}

// A word as a float32 in (0, 1] that keeps its resolution near 0: (⌊u/2⌋ + ½)·2⁻³¹, rounded. It is the
// argument of the logarithm of Box–Muller radii (tail to 6.7σ) and of acceptance thresholds.
template <class R, class I> HD R unit_for_log(I half) { return (to_real(half) + 0.5f) * 0x1p-31f; }

// One Box–Muller pair: radius √(−2 ln u), angle πy/2 with y in [−1, 1), and a sign bit that reflects the
// half circle to the full one. `sign` is zero or the sign bit alone.
template <class R> struct Pair {
  R first, second;
};
template <class R> HD Pair<R> box_muller(R u, R y, Int<R> sign) {
  using S = Scalar<R>;
  const R radius = sqrt_rn(log_portable(u) * S(-2));
  const R c = from_bits(bits(cos_quarter(y, S())) ^ sign);
  return {radius * c, radius * sin_quarter(y, S())};
}

// The numbers of one block, for a number R or for lanes: four with float32, two with float64.
template <class R, class S = Scalar<R>> struct Block;

template <class R> struct Block<R, float> {
  static constexpr int kSize = 4;
  Word<R> w0, w1, w2, w3;

  HD void uniforms(R out[4]) const {
    out[0] = uniform(w0), out[1] = uniform(w1), out[2] = uniform(w2), out[3] = uniform(w3);
  }
  HD R signed_uniform_at(int j) const {
    return signed_unit_from_mantissa<R>((Int<R>)((j == 0   ? w0
                                                  : j == 1 ? w1
                                                  : j == 2 ? w2
                                                           : w3) >>
                                                 9));
  }
  HD void log_uniforms(R out[4]) const {
    out[0] = log_uniform(w0), out[1] = log_uniform(w1);
    out[2] = log_uniform(w2), out[3] = log_uniform(w3);
  }
  HD void normals(R out[4]) const {
    const Pair<R> a = pair(w0, w1), b = pair(w2, w3);
    out[0] = a.first, out[1] = a.second, out[2] = b.first, out[3] = b.second;
  }
  HD R log_uniform_at(int j) const {
    return log_uniform(j == 0 ? w0 : j == 1 ? w1 : j == 2 ? w2 : w3);
  }
  HD R uniform_at(int j) const { return uniform(j == 0 ? w0 : j == 1 ? w1 : j == 2 ? w2 : w3); }
  static HD R uniform(Word<R> u) { return unit_from_mantissa<R>((Int<R>)(u >> 9)); }
  static HD R log_uniform(Word<R> u) { return log_portable(unit_for_log<R>((Int<R>)(u >> 1))); }
  static HD Pair<R> pair(Word<R> u, Word<R> v) {
    return box_muller(unit_for_log<R>((Int<R>)(u >> 1)), to_real((Int<R>)v) * 0x1p-31f,
                      (Int<R>)(v << 31));
  }
};

template <class R> struct Block<R, double> {
  static constexpr int kSize = 2;
  Word<R> w0, w1;  // 64 bits each: the first word of the block is the high half of w0

  HD void uniforms(R out[2]) const { out[0] = uniform(w0), out[1] = uniform(w1); }
  HD R signed_uniform_at(int j) const {
    return signed_unit_from_mantissa<R>((Int<R>)((j == 0 ? w0 : w1) >> 12));
  }
  HD void log_uniforms(R out[2]) const { out[0] = log_uniform(w0), out[1] = log_uniform(w1); }
  HD void normals(R out[2]) const {
    const Pair<R> p = box_muller(uniform(w0), uniform(w1) * 2.0 - 1.0, (Int<R>)(w1 << 63));
    out[0] = p.first, out[1] = p.second;
  }
  HD R log_uniform_at(int j) const { return log_uniform(j == 0 ? w0 : w1); }
  HD R uniform_at(int j) const { return uniform(j == 0 ? w0 : w1); }
  static HD R uniform(Word<R> u) { return unit_from_mantissa<R>((Int<R>)(u >> 12)); }
  static HD R log_uniform(Word<R> u) { return log_portable(uniform(u)); }
};

HD Block<float> make_block(const Words<uint32_t>& w, float) { return {w.w0, w.w1, w.w2, w.w3}; }
HD Block<double> make_block(const Words<uint32_t>& w, double) {
  return {uint64_t(w.w0) << 32 | w.w1, uint64_t(w.w2) << 32 | w.w3};
}

#ifndef __CUDACC__
// Philox in SIMD lanes. A word of 2k lanes is kept as its even and odd halves, each in the low half of
// k 64-bit lanes: the products then need no shuffles, and high halves may hold anything until the end.
// (Hand-written because compilers lose a factor of two to three here; the scalar form above is its
// definition and a test compares them.)
struct HalfWords {
  U64 w0, w1, w2, w3;
};

HD U64 broadcast(uint64_t x) { return U64{} + x; }

HD HalfWords philox(const Key& key, U64 c0, U64 c1, U64 c2, U64 c3, int first_round = 0) {
  const U64 m0 = broadcast(kPhiloxM0), m1 = broadcast(kPhiloxM1);
#pragma GCC unroll 10
  for (int round = first_round; round < 10; ++round) {
    const U64 p0 = multiply_low(c0, m0), p1 = multiply_low(c2, m1);
    c0 = xor3(p1 >> 32, c1, broadcast(key.k0(round)));
    c1 = p1;
    c2 = xor3(p0 >> 32, c3, broadcast(key.k1(round)));
    c3 = p0;
  }
  return {c0, c1, c2, c3};
}

// Lanes that share block, step and stream and differ in the chain: the first round and half of the
// second act on numbers that all lanes share.
HD HalfWords philox_chains(const Key& key, uint32_t block, U64 chain, uint32_t step,
                           uint32_t stream) {
  const uint64_t p0 = uint64_t(kPhiloxM0) * block, p1 = uint64_t(kPhiloxM1) * step;
  const U64 c0 = chain ^ broadcast((p1 >> 32) ^ key.k0(0));
  const uint32_t c1 = uint32_t(p1), c2 = uint32_t(p0 >> 32) ^ stream ^ uint32_t(key.k1(0)),
                 c3 = uint32_t(p0);
  const U64 q0 = multiply_low(c0, broadcast(kPhiloxM0));
  const uint64_t q1 = uint64_t(kPhiloxM1) * c2;
  return philox(key, broadcast((q1 >> 32) ^ c1 ^ key.k0(1)), broadcast(q1),
                (q0 >> 32) ^ broadcast(c3 ^ key.k1(1)), q0, 2);
}

// Lanes that share chain, step and stream and differ in the block.
HD HalfWords philox_blocks(const Key& key, U64 block, uint32_t chain, uint32_t step,
                           uint32_t stream) {
  const uint64_t p1 = uint64_t(kPhiloxM1) * step;
  const U64 p0 = multiply_low(block, broadcast(kPhiloxM0));
  const uint32_t c0 = uint32_t(p1 >> 32) ^ chain ^ uint32_t(key.k0(0)), c1 = uint32_t(p1);
  const U64 c2 = (p0 >> 32) ^ broadcast(stream ^ key.k1(0)), c3 = p0;
  const uint64_t q0 = uint64_t(kPhiloxM0) * c0;
  const U64 q1 = multiply_low(c2, broadcast(kPhiloxM1));
  return philox(key, (q1 >> 32) ^ broadcast(c1 ^ key.k0(1)), q1,
                c3 ^ broadcast((q0 >> 32) ^ key.k1(1)), broadcast(q0), 2);
}

HD Block<F32> make_block(const HalfWords& even, const HalfWords& odd) {
  return {interleave(even.w0, odd.w0), interleave(even.w1, odd.w1), interleave(even.w2, odd.w2),
          interleave(even.w3, odd.w3)};
}
HD Block<F64> make_block(const HalfWords& w) {
  const U64 low = broadcast(0xffffffff);
  return {(w.w0 << 32) | (w.w1 & low), (w.w2 << 32) | (w.w3 & low)};
}
#endif

}  // namespace PYSAMP_NS
