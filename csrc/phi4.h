// φ⁴ fields of N components on a chain or a lattice, periodic or with zeros outside (Dirichlet).
//
//   −log p(φ) = Σ_x [ φ_x·(½ J Δ_x + v₁ + v₂ φ_x) + v₄ (φ_x² − c)² ],   Δ_x = z φ_x − Σ_{y~x} φ_y
//
// z is the number of neighbours and Σ φ_x·Δ_x is the sum over bonds of (φ_x − φ_y)², bonds to the zeros
// outside included. The forms of pysamp/targets/phi4.py and of the soft O(n) model (targets/on.py) are
// choices of (J, v₁, v₂, v₄, c); v₁ is for one component.
//
// params: J, v1, v2, v4, c.   layout, table: lattice.h.   N = 0: as many components as the layout says.
#pragma once
#include "lattice.h"

namespace PYSAMP_NS {

template <class S, int N> struct Quartic {
  Neighbours neighbours;
  S half_j, j, v1, v4, four_v4, shift;
  S square, linear;  // coefficients of φ² in −log p, and of −φ in the score
  int components;

  HD explicit Quartic(const Energy<S>& e)
      : neighbours(e), half_j(e.params[0] * S(0.5)), j(e.params[0]), v1(e.params[1]),
        v4(e.params[3]), four_v4(e.params[3] * S(4)), shift(e.params[4]),
        square(half_j * S(e.layout[1]) + e.params[2]),
        linear((j * S(e.layout[1]) + e.params[2] * S(2)) - four_v4 * shift),
        components(int(e.layout[3])) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t n_table) {
    Neighbours::check(e, event, n_table);
    PYSAMP_NS::check(N == 0 || e.layout[3] == N, "layout: wrong number of components");
    PYSAMP_NS::check(n_params == 5, "params: expected (J, v1, v2, v4, c), got " +
                                        std::to_string(n_params) + " numbers");
  }

  HD int n() const { return N ? N : components; }
  template <class R> HD R around(const R* x, int64_t i, int a) const {
    const int m = n();
    return neighbours.sum(i, [&](int64_t k) INLINE { return x[k * m + a]; });
  }

  // The terms of one site; those of order J cancel here, before anything is summed.
  template <bool value, bool gradient, class R> HD R site(const R* x, int64_t i, R* s) const {
    const int m = n();
    const R* phi = x + i * m;
    R q = phi[0] * phi[0];
    for (int a = 1; a < m; ++a) q = q + phi[a] * phi[a];
    R bonds{};
    for (int a = 0; a < m; ++a) {
      const R sum = around(x, i, a);
      if (gradient) s[i * m + a] = (sum * j - v1) - phi[a] * (q * four_v4 + linear);
      if (!value) continue;
      const R term = phi[a] * (v1 - sum * half_j);
      bonds = a ? bonds + term : term;
    }
    const R w = q - shift;
    return value ? bonds + (q * square + w * w * v4) : R{};  // −log p
  }

  template <class G> HD typename G::Real log_prob(const G& g, const typename G::Real* x) const {
    using R = typename G::Real;
    return -g.sum(neighbours.n,
                  [&](int64_t i) INLINE { return site<true, false, R>(x, i, nullptr); });
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    g.each(neighbours.n, [&](int64_t i) INLINE { site<false, true>(x, i, s); });
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    return -g.sum(neighbours.n, [&](int64_t i) INLINE { return site<true, true>(x, i, s); });
  }
};

template <class S> using Phi4 = Quartic<S, 1>;
template <class S> using Soft = Quartic<S, 0>;
template <> inline constexpr bool kSmallEvents<Phi4> = false;
template <> inline constexpr bool kSmallEvents<Soft> = false;

}  // namespace PYSAMP_NS
