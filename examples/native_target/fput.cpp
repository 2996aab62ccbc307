// The Fermi–Pasta–Ulam–Tsingou chain: n masses between two walls, anharmonic springs, at inverse
// temperature β (Fermi, Pasta, Ulam, Los Alamos report LA-1940, 1955):
//
//   log p(x) = −β Σ_{i=0}^{n} V(x_i − x_{i−1}),   V(r) = ½ r² + (a/3) r³ + (b/4) r⁴,   x_{−1} = x_n = 0
//
// params: β, a/3, b/4, a, b.   layout: n.   table: empty.
// The walls are the zero slot x[n] that every field has.
#include "bindings.h"

namespace PYSAMP_NS {

template <class S> struct Fput {
  S beta, a3, b4, a, b;
  int64_t n;

  HD explicit Fput(const Energy<S>& e)
      : beta(e.params[0]), a3(e.params[1]), b4(e.params[2]), a(e.params[3]), b(e.params[4]),
        n(e.layout[0]) {}

  static void check(const Energy<S>& e, int64_t event, int64_t n_params, int64_t n_table) {
    PYSAMP_NS::check(e.n_layout == 1 && e.layout[0] == event, "layout: expected (n_sites,)");
    PYSAMP_NS::check(n_params == 5, "params: expected (beta, a/3, b/4, a, b)");
    PYSAMP_NS::check(n_table == 0, "table: expected none");
  }

  template <class R> HD R spring(R r) const { return r * r * ((r * b4 + a3) * r + S(0.5)); }
  template <class R> HD R slope(R r) const { return r * ((r * b + a) * r + S(1)); }  // V'(r)
  template <class R> HD R left(const R* x, int64_t i) const { return x[i == 0 ? n : i - 1]; }

  template <class G> HD typename G::Real log_prob(const G& g, const typename G::Real* x) const {
    return g.sum(n + 1, [&](int64_t i) INLINE { return spring(x[i] - left(x, i)); }) * -beta;
  }
  template <class G>
  HD void score(const G& g, const typename G::Real* x, typename G::Real* s) const {
    g.each(n, [&](int64_t i) INLINE {
      s[i] = (slope(x[i + 1] - x[i]) - slope(x[i] - left(x, i))) * beta;
    });
  }
  template <class G>
  HD typename G::Real log_prob_and_score(const G& g, const typename G::Real* x,
                                         typename G::Real* s) const {
    score(g, x, s);
    return log_prob(g, x);
  }
  // log p(x with x_i → v) − log p(x): the two springs that hold mass i.
  template <class R> HD R local(const R* x, int64_t i, R v) const {
    const R l = left(x, i), r = x[i + 1];
    return ((spring(v - l) + spring(r - v)) - (spring(x[i] - l) + spring(r - x[i]))) * -beta;
  }
};

}  // namespace PYSAMP_NS

PYBIND11_MODULE(_fput, m) {
  PYSAMP_NS::bind_energy<PYSAMP_NS::Fput>(m, "fput");
  PYSAMP_NS::bind_sites<PYSAMP_NS::Fput>(m, "fput");
}
