// Portable small mathematics: one text for a number (host and device) and for a vector of SIMD lanes.
//
// Everything here is + − × ÷, comparisons and bit operations, each rounded once (no contraction), so
// C++, CUDA and the torch reference give the same bits. The polynomials are fitted by
// docs/polynomials.py; pysamp/reference.py states the same functions in torch.
#pragma once
#include "hd.h"
#include "lanes.h"

namespace PYSAMP_NS {

template <class R> struct Constants;

template <> struct Constants<float> {
  static constexpr int kMantissa = 23;
  static constexpr int32_t kMantissaMask = 0x007fffff, kBias = 127;
  static constexpr int32_t kOne = 0x3f800000, kTwo = 0x40000000, kSqrtHalf = 0x3f3504f3;
  static constexpr float kLn2Hi = 0x1.62ep-1f,
                         kLn2Lo = 0x1.0bfbe8p-15f;  // hi has 12 bits: n·hi exact
  static constexpr float kLn2 = 0x1.62e43p-1f;
  static constexpr float kLog2e = 0x1.715476p+0f, kRound = 0x1.8p+23f;
  static constexpr float kExpLo = -87.0f, kExpHi = 88.0f;
};

template <> struct Constants<double> {
  static constexpr int kMantissa = 52;
  static constexpr int64_t kMantissaMask = 0x000fffffffffffff, kBias = 1023;
  static constexpr int64_t kOne = 0x3ff0000000000000, kTwo = 0x4000000000000000,
                           kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kLn2Hi = 0x1.62e42feep-1, kLn2Lo = 0x1.a39ef35793c76p-33;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  static constexpr double kLog2e = 0x1.71547652b82fep+0, kRound = 0x1.8p+52;
  static constexpr double kExpLo = -708.0, kExpHi = 709.0;
};

// ln x for positive normal x: x = 2^e m with m in [√½, √2), then a polynomial in f = m − 1.
template <class R> HD R log_tail(R f, float) {
  R p = f * -0x1.43b246p-4f + 0x1.02814ep-3f;
  p = p * f + -0x1.0a33eap-3f;
  p = p * f + 0x1.231ce6p-3f;
  p = p * f + -0x1.54d03ep-3f;
  p = p * f + 0x1.999f14p-3f;
  p = p * f + -0x1.0000cep-2f;
  p = p * f + 0x1.555554p-2f;
  return f + f * f * (p * f - 0.5f);  // log(1+f) = f − f²/2 + f³ p(f)
}
template <class R> HD R log_tail(R f, double) {
  const R s = f / (f + 2.0), z = s * s;
  R p = z * 0x1.2b58f4c8d5f63p-3 + 0x1.39fe52a20dc69p-3;
  p = p * z + 0x1.7462b5152e8a6p-3;
  p = p * z + 0x1.c71c62e40b94ep-3;
  p = p * z + 0x1.2492492df26cep-2;
  p = p * z + 0x1.99999999952d8p-2;
  p = p * z + 0x1.5555555555558p-1;
  return s * 2.0 + s * z * p;  // log(1+f) = 2 artanh s
}

template <class R> HD R log_portable(R x) {
  using S = Scalar<R>;
  using C = Constants<S>;
  const Int<R> i = bits(x) + (C::kOne - C::kSqrtHalf);
  const R e = to_real((i >> C::kMantissa) - C::kBias);
  const R tail = log_tail(from_bits((i & C::kMantissaMask) + C::kSqrtHalf) - S(1), S());
  if (sizeof(S) == 4) return e * C::kLn2 + tail;  // |e ln 2| is 0 or at least twice |tail|: no loss
  return e * C::kLn2Hi + (tail + e * C::kLn2Lo);
}

// e^r − 1 for |r| ≤ ½ ln 2, and e^x clamped to the range of normal numbers (0 below it; NaN counts as −∞).
template <class R> HD R expm1_tail(R r, float) {
  R p = r * 0x1.6d7532p-10f + 0x1.126fa8p-7f;
  p = p * r + 0x1.5554acp-5f;
  p = p * r + 0x1.555404p-3f;
  p = p * r + 0x1p-1f;
  p = p * r + 1.0f;
  return p * r;
}
template <class R> HD R expm1_tail(R r, double) {
  R p = r * 0x1.1f8b442e1797p-29 + 0x1.af785dabc1ddap-26;
  p = p * r + 0x1.27e4cc1823cb4p-22;
  p = p * r + 0x1.71dde76a74343p-19;
  p = p * r + 0x1.a01a01adc28dap-16;
  p = p * r + 0x1.a01a01b80241fp-13;
  p = p * r + 0x1.6c16c16c14d76p-10;
  p = p * r + 0x1.111111110db75p-7;
  p = p * r + 0x1.5555555555559p-5;
  p = p * r + 0x1.5555555555562p-3;
  p = p * r + 0x1p-1;
  p = p * r + 1.0;
  return p * r;
}

template <class R> HD R exp_portable(R x) {
  using S = Scalar<R>;
  using C = Constants<S>;
  const auto inside = x > C::kExpLo;  // false for NaN
  R y = select(inside, x, R{} + C::kExpLo);
  y = select(y < C::kExpHi, y, R{} + C::kExpHi);
  const R t = y * C::kLog2e + C::kRound;  // the sum rounds y/ln 2 to an integer n
  const R n = t - C::kRound;
  const R r = (y - n * C::kLn2Hi) - n * C::kLn2Lo;
  const Int<R> k = bits(t) - bits(R{} + C::kRound);
  const R p = from_bits(bits(expm1_tail(r, S()) + S(1)) + (k << C::kMantissa));
  return select(inside, p, R{});
}

// sin(πy/2) and cos(πy/2) for |y| ≤ 1.
template <class R> HD R sin_quarter(R y, float) {
  const R z = y * y;
  R p = z * 0x1.3e142p-13f + -0x1.32531ep-8f;
  p = p * z + 0x1.4668fp-4f;
  p = p * z + -0x1.4abbc4p-1f;
  return y * (p * z + 0x1.921fb6p+0f);
}
template <class R> HD R cos_quarter(R y, float) {
  const R z = y * y;
  R p = z * -0x1.8fb3f4p-16f + 0x1.e126bp-11f;
  p = p * z + -0x1.55d074p-6f;
  p = p * z + 0x1.03c1e4p-2f;
  p = p * z + -0x1.3bd3ccp+0f;
  return p * z + 1.0f;
}
template <class R> HD R sin_quarter(R y, double) {
  const R z = y * y;
  R p = z * 0x1.9d462020fcc78p-38 + -0x1.6f7acdb8f658p-31;
  p = p * z + 0x1.e8f3675ee37ddp-25;
  p = p * z + -0x1.e3074dfaf87afp-19;
  p = p * z + 0x1.5078348551854p-13;
  p = p * z + -0x1.32d2cce627c86p-8;
  p = p * z + 0x1.466bc6775aa7dp-4;
  p = p * z + -0x1.4abbce625be52p-1;
  return y * (p * z + 0x1.921fb54442d18p+0);
}
template <class R> HD R cos_quarter(R y, double) {
  const R z = y * y;
  R p = z * -0x1.2084dd432a1bep-41 + 0x1.209de0f1701fdp-34;
  p = p * z + -0x1.b6e1921f719a3p-28;
  p = p * z + 0x1.f9d3881e49dfdp-22;
  p = p * z + -0x1.a6d1f29e543bcp-16;
  p = p * z + 0x1.e1f5068913c52p-11;
  p = p * z + -0x1.55d3c7e3cbf5ep-6;
  p = p * z + 0x1.03c1f081b5ac3p-2;
  p = p * z + -0x1.3bd3cc9be45dep+0;
  return p * z + 1.0;
}

}  // namespace PYSAMP_NS
