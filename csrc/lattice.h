// Lattices: the neighbours of a site, and fields of n components per site on them.
//
// A field is n_sites · n numbers, the components of a site side by side, and kOutside zeros behind
// them, which stand for all sites outside an open lattice (their number is n_sites).
#pragma once
#include "energy.h"

namespace PYSAMP_NS {

inline constexpr int kMaxComponents = 8;

// layout: n_sites, z, periodic (0 or 1), n_components.
// table:  neighbours (n_sites, z) as flat site numbers, −μ and +μ in turn, n_sites for a site outside;
//         it may be empty for z = 2, where the neighbours of i are i ± 1.
struct Neighbours {
  int64_t n, before_first, after_last;
  int z;
  const int32_t* table;

  template <class S>
  HD explicit Neighbours(const Energy<S>& e)
      : n(e.layout[0]), before_first(e.layout[2] ? e.layout[0] - 1 : e.layout[0]),
        after_last(e.layout[2] ? 0 : e.layout[0]), z(int(e.layout[1])), table(e.table) {}

  HD int64_t at(int64_t i, int k) const {
    if (table) return table[i * z + k];
    return k ? (i + 1 == n ? after_last : i + 1) : (i == 0 ? before_first : i - 1);
  }
  // Σ over neighbours of component c of a field of m components; y(j) gives the number of site j.
  template <class F> HD auto sum(int64_t i, F y) const -> decltype(y(i)) {
    if (!table) return y(i == 0 ? before_first : i - 1) + y(i + 1 == n ? after_last : i + 1);
    const int32_t* t = table + i * z;
    if (z == 2) return y(t[0]) + y(t[1]);
    const auto sum = (y(t[0]) + y(t[1])) + (y(t[2]) + y(t[3]));
    if (z == 4) return sum;
    return sum + (y(t[4]) + y(t[5]));
  }

  template <class S> static void check(const Energy<S>& e, int64_t event, int64_t n_table) {
    PYSAMP_NS::check(e.n_layout == 4,
                     "layout: expected (n_sites, n_neighbours, periodic, n_components)");
    const int64_t sites = e.layout[0], z = e.layout[1], m = e.layout[3];
    PYSAMP_NS::check(m >= 1 && m <= kMaxComponents, "layout: from 1 to 8 components");
    PYSAMP_NS::check(sites >= 1 && sites * m == event,
                     "x: expected events of " + std::to_string(sites) + " sites of " +
                         std::to_string(m) + " components, got " + std::to_string(event));
    PYSAMP_NS::check(z == 2 || z == 4 || z == 6, "layout: a site has 2, 4 or 6 neighbours");
    PYSAMP_NS::check(e.layout[2] == 0 || e.layout[2] == 1, "layout: periodic is 0 or 1");
    PYSAMP_NS::check(n_table == sites * z || (z == 2 && n_table == 0), "table: wrong length");
    for (int64_t i = 0; e.host_table && i < n_table; ++i)
      if (e.host_table[i] < 0 || e.host_table[i] > sites)
        PYSAMP_NS::check(false,
                         "table: neighbour " + std::to_string(e.host_table[i]) + " is no site");
  }
};

}  // namespace PYSAMP_NS
