// Two small densities with one hard feature each: concentric rings in the plane, and Neal's funnel. The
// targets are Rings (pysamp/targets/mixture.py) and Funnel (pysamp/targets/toy.py).
#pragma once
#include "energy.h"

namespace PYSAMP_NS {

// Rings of radius 1 … K and width w:
//
//   log p(x) = log Σ_k exp(−½ ((r − k)/w)²) − log r − c,   r = max(|x|, 10⁻¹²)
//
// The exponents are taken relative to the nearest ring, in two passes over k.
// params: 1/w, 1/w², c.   layout: K.   table: empty.
template <class S> struct Rings {
  int64_t k;
  S inverse_width, inverse_variance, constant;

  HD explicit Rings(const Energy<S>& e)
      : k(e.layout[0]), inverse_width(e.params[0]), inverse_variance(e.params[1]),
        constant(e.params[2]) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t) {
    PYSAMP_NS::check(e.n_layout == 1 && e.layout[0] >= 1, "layout: expected (n_rings,)");
    PYSAMP_NS::check(event == 2, "x: expected events of 2 numbers, got " + std::to_string(event));
    PYSAMP_NS::check(n_params == 3, "params: expected (1/w, 1/w^2, constant), got " +
                                        std::to_string(n_params) + " numbers");
  }

  // log p; its derivative along r and 1/r for the score.
  template <class R> HD R radial(const R* x, R& slope, R& inverse) const {
    const R square = x[0] * x[0] + x[1] * x[1];
    const R r = sqrt_rn(select(square < S(1e-24), R{} + S(1e-24), square));  // NaN stays NaN
    inverse = S(1) / r;
    R least{};
    for (int64_t c = 1; c <= k; ++c) {
      const R gap = (r - S(c)) * inverse_width, q = gap * gap;
      least = c == 1 ? q : select(q < least, q, least);
    }
    R sum{}, pull{};
    for (int64_t c = 1; c <= k; ++c) {
      const R away = r - S(c), gap = away * inverse_width;
      const R e = exp_portable((least - gap * gap) * S(0.5));
      sum = sum + e;
      pull = pull + e * away;
    }
    slope = -(pull / sum) * inverse_variance - inverse;
    return (log_portable(sum * inverse) - least * S(0.5)) - constant;
  }
  template <class G> HD typename G::Real log_prob(const G&, const typename G::Real* x) const {
    typename G::Real slope, inverse;
    return radial(x, slope, inverse);
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    typename G::Real slope, inverse;
    const auto lp = radial(x, slope, inverse);
    g.each(2, [&](int64_t i) INLINE { s[i] = slope * (x[i] * inverse); });
    return lp;
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    log_prob_and_score(g, x, s);
  }
};

// Funnel: z = x₀ ~ N(0, v), x_i | z ~ N(0, e^z), i = 1 … d − 1:
//
//   log p(x) = −z²/(2v) − ½ (d − 1) z − ½ e^{−z} Σ_i x_i² − c
//
// params: 1/v, c.   layout: d.   table: empty.
template <class S> struct Funnel {
  int64_t d;
  S inverse_variance, constant, half_rest;

  HD explicit Funnel(const Energy<S>& e)
      : d(e.layout[0]), inverse_variance(e.params[0]), constant(e.params[1]),
        half_rest(S(e.layout[0] - 1) * S(0.5)) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t) {
    PYSAMP_NS::check(e.n_layout == 1 && e.layout[0] >= 2, "layout: expected (dim,), at least 2");
    PYSAMP_NS::check(event == e.layout[0], "x: expected events of " + std::to_string(e.layout[0]) +
                                               " numbers, got " + std::to_string(event));
    PYSAMP_NS::check(n_params == 2, "params: expected (1/v, constant), got " +
                                        std::to_string(n_params) + " numbers");
  }

  // ½ e^{−z} Σ_i x_i², the energy of all but the neck.
  template <class G, class R> HD R energy(const G& g, const R* x, R precision) const {
    const R square = g.sum(d - 1, [&](int64_t i) INLINE { return x[i + 1] * x[i + 1]; });
    return (square * precision) * S(0.5);
  }
  template <class R> HD R value(R z, R energy) const {
    const R neck = (z * z) * (inverse_variance * S(0.5)) + z * half_rest;
    return -(neck + energy) - constant;
  }
  template <class G> HD typename G::Real log_prob(const G& g, const typename G::Real* x) const {
    return value(x[0], energy(g, x, exp_portable(-x[0])));
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    const auto z = x[0], precision = exp_portable(-z), rest = energy(g, x, precision);
    g.each(d, [&](int64_t i) INLINE {
      s[i] = i ? -(x[i] * precision) : (rest - half_rest) - z * inverse_variance;
    });
    return value(z, rest);
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    log_prob_and_score(g, x, s);
  }
};

}  // namespace PYSAMP_NS
