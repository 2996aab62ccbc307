// Bayesian logistic regression with Gaussian priors. θ = (weights, bias), d numbers:
//
//   log p(θ) = Σ_n log σ(t_n) − ½ Σ_i λ_i θ_i² − c,   t_n = f_n · θ,   log σ(t) = min(t, 0) − log(1 + e^{−|t|})
//
// f_n = ±(x_n, 1), the sign that of the label; λ_i is one number for the weights, another for the bias.
// Eight rows go at once: their sums are independent, θ_i and the score are read once for all of them, and
// their eight logarithms are one, of a product of numbers in [1, 2].
//
// params: λ of weights, λ of the bias, c, then the rows in blocks of eight, [block][i][row of the block],
// with rows of zeros behind the last.   layout: number of rows, d.   table: empty.
#pragma once
#include "energy.h"

namespace PYSAMP_NS {

template <class S> struct Logistic {
  static constexpr int kBlock = 8;
  static constexpr int64_t kPart = 64;  // blocks summed apart, so that float32 keeps its digits
  int64_t rows, d;
  S weight_precision, bias_precision, constant;
  const S* blocks;

  HD explicit Logistic(const Energy<S>& e)
      : rows(e.layout[0]), d(e.layout[1]), weight_precision(e.params[0]),
        bias_precision(e.params[1]), constant(e.params[2]), blocks(e.params + 3) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t) {
    PYSAMP_NS::check(e.n_layout == 2 && e.layout[0] >= 1, "layout: expected (n_rows, dim)");
    const int64_t d = e.layout[1], expected = 3 + (e.layout[0] + kBlock - 1) / kBlock * kBlock * d;
    PYSAMP_NS::check(d >= 1 && event == d, "x: expected events of " + std::to_string(d) +
                                               " numbers, got " + std::to_string(event));
    PYSAMP_NS::check(n_params == expected, "params: expected " + std::to_string(expected) +
                                               " numbers, got " + std::to_string(n_params));
  }

  HD S precision(int64_t i) const { return i + 1 < d ? weight_precision : bias_precision; }

  // Value and gradient of one block; `count` of its rows are not padding.
  template <bool value, bool gradient, class G, class R>
  HD R block(const G& g, const S* f, int count, const R* x, R* s) const {
    R t[kBlock];
    UNROLL
    for (int b = 0; b < kBlock; ++b) t[b] = R{};
    g.each(d, [&](int64_t i) INLINE {
      const R xi = x[i];
      UNROLL
      for (int b = 0; b < kBlock; ++b) t[b] = t[b] + xi * f[i * kBlock + b];
    });
    R product = R{} + S(1), below{};
    UNROLL
    for (int b = 0; b < kBlock; ++b) {
      const R sum = g.total(t[b]);
      const auto positive = sum > S(0);
      const R e = exp_portable(select(positive, -sum, sum)), one = e + S(1);
      if (value && b < count) {
        below = below + select(sum < S(0), sum, R{});
        product = product * one;
      }
      if (gradient) t[b] = b < count ? select(positive, e, R{} + S(1)) / one : R{};  // σ(−t)
    }
    if (gradient)
      g.each(d, [&](int64_t i) INLINE {
        const S* c = f + i * kBlock;
        s[i] = s[i] + (((t[0] * c[0] + t[1] * c[1]) + (t[2] * c[2] + t[3] * c[3])) +
                       ((t[4] * c[4] + t[5] * c[5]) + (t[6] * c[6] + t[7] * c[7])));
      });
    return value ? below - log_portable(product) : R{};
  }
  template <bool value, bool gradient, class G, class R>
  HD R posterior(const G& g, const R* x, R* s) const {
    if (gradient) g.each(d, [&](int64_t i) INLINE { s[i] = -(x[i] * precision(i)); });
    R total{};
    for (int64_t begin = 0; begin < rows; begin += kPart * kBlock) {
      const int64_t end = begin + kPart * kBlock < rows ? begin + kPart * kBlock : rows;
      R part{};
      for (int64_t n = begin; n < end; n += kBlock)
        part = part + block<value, gradient>(g, blocks + n * d, int(end - n), x, s);
      total = total + part;
    }
    if (!value) return R{};
    const R square = g.sum_any(d, [&](int64_t i) INLINE { return x[i] * x[i] * precision(i); });
    return (total - square * S(0.5)) - constant;
  }

  template <class G> HD typename G::Real log_prob(const G& g, const typename G::Real* x) const {
    return posterior<true, false, G, typename G::Real>(g, x, nullptr);
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    posterior<false, true>(g, x, s);
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    return posterior<true, true>(g, x, s);
  }
};

}  // namespace PYSAMP_NS
