// Mixture of Gaussians with diagonal covariances, in the direct form (no expanded squares):
//
//   log p(x) = log Σ_k exp( a_k ),   a_k = w_k − ½ Σ_i p_ki (x_i − μ_ki)²
//
// params: w (K) log-weights with the Gaussian normalisation in them, μ (K, d), p (K, d) precisions.
// layout: K, d.   table: empty.
// Components are visited twice: once for the running maximum of a_k and the sum relative to it, once for
// the score. Up to kStored of them keep a_k in between; more are computed again, so K has no limit.
#pragma once
#include "energy.h"

namespace PYSAMP_NS {

template <class S> struct Mixture {
  static constexpr int kStored = 32;
  int64_t k, d;
  const S *w, *mean, *precision;

  HD explicit Mixture(const Energy<S>& e)
      : k(e.layout[0]), d(e.layout[1]), w(e.params), mean(e.params + e.layout[0]),
        precision(e.params + e.layout[0] * (1 + e.layout[1])) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t) {
    PYSAMP_NS::check(e.n_layout == 2, "layout: expected (n_components, dim)");
    const int64_t k = e.layout[0], d = e.layout[1];
    PYSAMP_NS::check(k >= 1 && d == event, "x: expected events of " + std::to_string(d) +
                                               " numbers, got " + std::to_string(event));
    PYSAMP_NS::check(n_params == k * (1 + 2 * d), "params: expected " +
                                                      std::to_string(k * (1 + 2 * d)) +
                                                      " numbers, got " + std::to_string(n_params));
  }

  template <class G>
  HD typename G::Real component(const G& g, const typename G::Real* x, int64_t c) const {
    const S *m = mean + c * d, *p = precision + c * d;
    return g.sum_any(d,
                     [&](int64_t i) INLINE {
                       const auto y = x[i] - m[i];
                       return y * y * p[i];
                     }) *
               S(-0.5) +
           w[c];
  }

  // Largest a_k and Σ_k exp(a_k − largest); the first kStored a_k are left in `stored`.
  template <class G>
  HD void normaliser(const G& g, const typename G::Real* x, typename G::Real* stored,
                     typename G::Real& top, typename G::Real& sum) const {
    using R = typename G::Real;
    top = component(g, x, 0);
    stored[0] = top;
    sum = R{} + S(1);
    for (int64_t c = 1; c < k; ++c) {
      const R a = component(g, x, c), gap = a - top;
      if (c < kStored) stored[c] = a;
      // one exponential serves both cases: the sum is rescaled where a is the new largest
      const auto larger = gap > S(0);
      const R e = exp_portable(select(larger, -gap, gap));
      sum = select(larger, sum * e + S(1), sum + e);
      top = select(larger, a, top);
    }
  }
  template <class G> HD typename G::Real log_prob(const G& g, const typename G::Real* x) const {
    typename G::Real stored[kStored], top, sum;
    normaliser(g, x, stored, top, sum);
    return top + log_portable(sum);
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    using R = typename G::Real;
    R stored[kStored], top, sum;
    normaliser(g, x, stored, top, sum);
    const R lp = top + log_portable(sum);
    const int64_t first = k < kStored ? k : kStored;
    for (int64_t c = 0; c < first; ++c)  // responsibilities
      stored[c] = exp_portable(stored[c] - lp);
    g.each(d, [&](int64_t i) INLINE {
      R total = stored[0] * ((mean[i] - x[i]) * precision[i]);
      for (int64_t c = 1; c < first; ++c)
        total = total + stored[c] * ((mean[c * d + i] - x[i]) * precision[c * d + i]);
      s[i] = total;
    });
    for (int64_t c = first; c < k; ++c) {
      const R r = exp_portable(component(g, x, c) - lp);
      const S *m = mean + c * d, *p = precision + c * d;
      g.each(d, [&](int64_t i) INLINE { s[i] = s[i] + r * ((m[i] - x[i]) * p[i]); });
    }
    return lp;
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    log_prob_and_score(g, x, s);
  }
};

}  // namespace PYSAMP_NS
