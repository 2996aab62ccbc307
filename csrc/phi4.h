// φ⁴ fields on a chain or a lattice, periodic or with zeros outside (Dirichlet).
//
//   −log p(φ) = Σ_x [ φ_x (½ J Δ_x + v₁ + v₂ φ_x) + v₄ (φ_x² − 1)² ],   Δ_x = z φ_x − Σ_{y~x} φ_y
//
// z is the number of neighbours and Σ φ_x Δ_x is the sum over bonds of (φ_x − φ_y)², bonds to the zeros
// outside included. Both forms of pysamp/targets/phi4.py are choices of (J, v₁, v₂, v₄).
//
// params: J, v1, v2, v4.   layout: n_sites, z, periodic (0 or 1).
// table:  neighbours (n_sites, z) as flat site numbers, n_sites for a site outside; empty for z = 2,
//         where the neighbours of i are i ± 1.
// Fields have one more slot, x[n_sites] = 0, which stands for all sites outside.
#pragma once
#include "energy.h"

namespace PYSAMP_NS {

template <class S> struct Phi4 {
  S half_j, j, v1, v4, four_v4;
  S square, linear;  // coefficients of φ² in −log p, and of −φ in the score
  int64_t n, before_first, after_last;
  int n_neighbours;
  const int32_t* table;

  HD explicit Phi4(const Energy<S>& e)
      : half_j(e.params[0] * S(0.5)), j(e.params[0]), v1(e.params[1]), v4(e.params[3]),
        four_v4(e.params[3] * S(4)), square(half_j * S(e.layout[1]) + e.params[2]),
        linear((j * S(e.layout[1]) + e.params[2] * S(2)) - four_v4), n(e.layout[0]),
        before_first(e.layout[2] ? e.layout[0] - 1 : e.layout[0]),
        after_last(e.layout[2] ? 0 : e.layout[0]), n_neighbours(int(e.layout[1])), table(e.table) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t n_table) {
    PYSAMP_NS::check(e.n_layout == 3, "layout: expected (n_sites, n_neighbours, periodic)");
    PYSAMP_NS::check(e.layout[0] == event, "x: expected events of " + std::to_string(e.layout[0]) +
                                               " sites, got " + std::to_string(event));
    PYSAMP_NS::check(n_params == 4, "params: expected (J, v1, v2, v4), got " +
                                        std::to_string(n_params) + " numbers");
    const int64_t z = e.layout[1];
    PYSAMP_NS::check(z == 2 || z == 4 || z == 6, "layout: a site has 2, 4 or 6 neighbours");
    PYSAMP_NS::check(e.layout[2] == 0 || e.layout[2] == 1, "layout: periodic is 0 or 1");
    PYSAMP_NS::check(n_table == (z == 2 ? 0 : event * z), "table: wrong length");
    for (int64_t i = 0; e.host_table && i < n_table; ++i)
      if (e.host_table[i] < 0 || e.host_table[i] > event)
        PYSAMP_NS::check(false,
                         "table: neighbour " + std::to_string(e.host_table[i]) + " is no site");
  }

  template <class R> HD R neighbour_sum(const R* x, int64_t i) const {
    if (n_neighbours == 2)
      return x[i == 0 ? before_first : i - 1] + x[i + 1 == n ? after_last : i + 1];
    const int32_t* t = table + i * n_neighbours;
    const R sum = (x[t[0]] + x[t[1]]) + (x[t[2]] + x[t[3]]);
    if (n_neighbours == 4) return sum;
    return sum + (x[t[4]] + x[t[5]]);
  }
  // The terms of one site; those of order J cancel here, before anything is summed.
  template <class R> HD R site(R v, R around) const {  // −log p
    const R q = v * v, w = q - S(1);
    return v * (v1 - around * half_j) + (q * square + w * w * v4);
  }
  template <class R> HD R site_score(R v, R around) const {
    return (around * j - v1) - v * (v * v * four_v4 + linear);
  }

  template <class G> HD typename G::Real log_prob(const G& g, const typename G::Real* x) const {
    return -g.sum(n, [&](int64_t i) INLINE { return site(x[i], neighbour_sum(x, i)); });
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    g.each(n, [&](int64_t i) INLINE { s[i] = site_score(x[i], neighbour_sum(x, i)); });
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    return -g.sum(n, [&](int64_t i) INLINE {
      const auto around = neighbour_sum(x, i);
      s[i] = site_score(x[i], around);
      return site(x[i], around);
    });
  }

  // log p(x with x_i → v) − log p(x), by (v²−1)² − (u²−1)² = (v−u)(v+u)(v²+u²−2).
  template <class R> HD R local(const R* x, int64_t i, R v) const {
    const R u = x[i], quartic = (v * v + u * u) - S(2);
    return (v - u) * ((neighbour_sum(x, i) * j - v1) - (v + u) * (quartic * v4 + square));
  }
};

}  // namespace PYSAMP_NS
