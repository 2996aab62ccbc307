// The O(n) model: spins of length 1 with n components on a lattice, log p(s) = J Σ_<xy> s_x·s_y, each
// bond once. n = 1 is the Ising, 2 the XY, 3 the Heisenberg model.
//
// params: J.   layout, table: lattice.h.   N = 0: as many components as the layout says.
// The score is that of log p as a function on all of R^{n_sites·n}; no chain of chains.h may use it.
#pragma once
#include "lattice.h"

namespace PYSAMP_NS {

template <class S, int N> struct UnitSpins {
  Neighbours neighbours;
  S j, half_j;
  int components;

  HD explicit UnitSpins(const Energy<S>& e)
      : neighbours(e), j(e.params[0]), half_j(e.params[0] * S(0.5)), components(int(e.layout[3])) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t n_table) {
    Neighbours::check(e, event, n_table);
    PYSAMP_NS::check(N == 0 || e.layout[3] == N, "layout: wrong number of components");
    PYSAMP_NS::check(n_params == 1,
                     "params: expected (J,), got " + std::to_string(n_params) + " numbers");
  }

  HD int n() const { return N ? N : components; }
  template <class R> HD R around(const R* x, int64_t i, int a) const {
    const int m = n();
    return neighbours.sum(i, [&](int64_t k) INLINE { return x[k * m + a]; });
  }
  template <class G> HD typename G::Real log_prob(const G& g, const typename G::Real* x) const {
    return g.sum(neighbours.n, [&](int64_t i) INLINE { return site(x, i); });
  }
  template <class R> HD R site(const R* x, int64_t i) const {  // log p, half of each of its bonds
    const int m = n();
    R dot = x[i * m] * around(x, i, 0);
    for (int a = 1; a < m; ++a) dot = dot + x[i * m + a] * around(x, i, a);
    return dot * half_j;
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    const int m = n();
    g.each(neighbours.n, [&](int64_t i) INLINE {
      for (int a = 0; a < m; ++a) s[i * m + a] = around(x, i, a) * j;
    });
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    score(g, x, s);
    return log_prob(g, x);
  }
};

template <class S> using Spins = UnitSpins<S, 0>;
template <> inline constexpr bool kSmallEvents<Spins> = false;

}  // namespace PYSAMP_NS
