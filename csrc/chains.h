// The Markov chains, each written once over an energy functor and run on every device: n transitions of
// a chain without leaving the chip. The torch definition of each is pysamp/mcmc/<name>.py, which these
// equal bit for bit wherever the energy does (no exp or log decides but the portable ones of hd.h).
//
// Numbers of transition t are a function of (seed, chain, t): n fused steps equal n single ones.
#pragma once
#include "energy.h"
#include "streams.h"

namespace PYSAMP_NS {

// One call: rows of chain-major tensors in, rows out. Pointers that are null mean "not wanted".
template <class S> struct Chains {
  Device device;
  int64_t n = 0, n_rows = 0, first_chain = 0;
  uint64_t seed = 0;
  int64_t step = 0, n_steps = 0, thin = 0, n_leapfrog = 1;
  const S *x = nullptr, *log_prob = nullptr, *score = nullptr;
  const S* scale = nullptr;                          // step size or proposal half-width, per row
  const S* beta = nullptr;                           // (rows)
  const S *centre = nullptr, *precision = nullptr;   // (rows, n), (rows)
  const S* matrix = nullptr;                         // (n, n), symmetric
  S factor = 1, cap = 0, log_low = 0, log_high = 0;  // per-chain adaptation of MALA; factor 1: none
  S *x_out = nullptr, *log_prob_out = nullptr, *score_out = nullptr;
  S *accept = nullptr, *nonfinite = nullptr, *scale_out = nullptr;  // (rows)
  S* mean_out = nullptr;  // (rows, n): of the last n_mean states
  int64_t n_mean = 0;
  S *trace_x = nullptr,
    *trace_log_prob = nullptr;  // (rows, n_steps / thin, n), (rows, n_steps / thin)
};

// The arrays of one chain in its scratch memory.
template <class R> struct Arrays {
  R* next;
  HD explicit Arrays(R* scratch) : next(scratch) {}
  HD R* take(int64_t n) {
    R* out = next;
    next += n;
    return out;
  }
};
HD int64_t field_size(int64_t n) { return n + kOutside; }  // a field and the zeros outside it
template <class S> HD int64_t posterior_size(const Chains<S>& c) {
  return ((c.centre ? 1 : 0) + (c.matrix ? 1 : 0)) * field_size(c.n);
}

template <class G, template <class> class E, class S>
HD Posterior<E<S>, typename G::Real, S> make_posterior(const G& g, const Energy<S>& energy,
                                                       const Chains<S>& c,
                                                       Arrays<typename G::Real>& arrays) {
  using R = typename G::Real;
  Posterior<E<S>, R, S> p{
      E<S>(energy), c.n,    c.beta != nullptr, c.centre != nullptr, R{}, R{}, R{}, nullptr,
      c.matrix,     nullptr};
  if (c.matrix) p.pull = arrays.take(field_size(c.n));
  if (p.tempered) p.beta = g.load(c.beta);
  if (p.tilted) {
    p.precision = g.load(c.precision);
    p.half_precision = p.precision * S(0.5);
    R* centre = arrays.take(field_size(c.n));
    g.load(c.centre, c.n, centre);
    p.centre = centre;
  }
  return p;
}

template <class R> HD void zero_slot(R* field, int64_t n) {
  for (int a = 0; a < kOutside; ++a) field[n + a] = R{};
}

// min(1, e^r), and 0 where r is NaN or +∞: such proposals are rejected and counted.
template <class R, class Mask> HD R acceptance(R r, Mask finite) {
  using S = Scalar<R>;
  return select(finite, exp_portable(select(r < S(0), r, R{})), R{});
}
template <class R> HD auto is_finite_ratio(R r) { return r < Scalar<R>(__builtin_inf()); }

// Keep a state every `thin` transitions.
template <class G, class S>
HD void trace(const G& g, const Chains<S>& c, int64_t done, const typename G::Real* x,
              typename G::Real log_prob) {
  if (!c.trace_x || done % c.thin) return;
  const int64_t kept = c.n_steps / c.thin, k = done / c.thin - 1;
  g.store(c.trace_x, k, kept, c.n, x);
  if (c.trace_log_prob) g.store(c.trace_log_prob, k, kept, log_prob);
}

template <class G, class S>
HD void finish(const G& g, const Chains<S>& c, const typename G::Real* x, typename G::Real log_prob,
               typename G::Real accept, typename G::Real nonfinite) {
  g.store(c.x_out, 0, 1, c.n, x);
  g.store(c.log_prob_out, log_prob);
  g.store(c.accept, accept / S(c.n_steps));
  g.store(c.nonfinite, nonfinite);
}

// log p and its gradient at x.
template <template <class> class E, class S> struct Evaluate {
  Energy<S> energy;
  Chains<S> c;
  static int64_t reals(const Chains<S>& c) { return 2 * field_size(c.n); }
  template <class G> HD void operator()(const G& g, typename G::Real* scratch) const {
    using R = typename G::Real;
    Arrays<R> arrays(scratch);
    R *x = arrays.take(field_size(c.n)), *s = arrays.take(field_size(c.n));
    const E<S> e(energy);
    g.load(c.x, c.n, x);
    zero_slot(x, c.n);
    g.sync();
    g.store(c.log_prob_out, c.score_out ? e.log_prob_and_score(g, x, s) : e.log_prob(g, x));
    if (c.score_out) g.store(c.score_out, 0, 1, c.n, s);
  }
};

// Langevin proposals x' = x + h ∇log p(x) + √(2h) ξ, with the Metropolis–Hastings correction (MALA) or
// without (ULA). Without a score log p is evaluated at the start.
template <template <class> class E, class S, bool adjusted> struct Langevin {
  Energy<S> energy;
  Chains<S> c;
  static int64_t reals(const Chains<S>& c) {
    return posterior_size(c) + (c.mean_out ? 5 : 4) * field_size(c.n) + padded(c.n);
  }
  template <class G> HD void operator()(const G& g, typename G::Real* scratch) const {
    using R = typename G::Real;
    const int64_t n = c.n;
    Arrays<R> arrays(scratch);
    const auto p = make_posterior<G, E, S>(g, energy, c, arrays);
    R *x = arrays.take(field_size(n)), *s = arrays.take(field_size(n));
    R *y = arrays.take(field_size(n)), *sy = arrays.take(field_size(n));
    R* z = arrays.take(padded(n));
    R* mean = c.mean_out ? arrays.take(field_size(n)) : nullptr;
    g.load(c.x, n, x);
    zero_slot(x, n);
    zero_slot(y, n);
    R lp{}, h = g.load(c.scale), accept{}, nonfinite{};
    const Key key = make_key(c.seed);
    if (mean) g.each(n, [&](int64_t i) INLINE { mean[i] = R{}; });
    g.sync();
    if (c.score) {
      g.load(c.score, n, s);
      lp = g.load(c.log_prob);
      g.sync();
    } else {
      lp = p.log_prob_and_score(g, x, s);
    }
    for (int64_t t = 0; t < c.n_steps; ++t) {
      const uint32_t stream = uint32_t(pysamp_streams::LANGEVIN) << 24;
      const R log_u = draw<true>(g, key, uint32_t(c.step + t), stream, n, z);
      const R noise = sqrt_rn(h * S(2));
      g.each(n, [&](int64_t i) INLINE { y[i] = (x[i] + h * s[i]) + noise * z[i]; });
      const R ly = p.log_prob_and_score(g, y, sy);
      R r = R{};
      if (adjusted) {
        const R inverse = S(1) / (h * S(4));
        r = (ly - lp) + g.sum(n, [&](int64_t i) INLINE {  // ln of the ratio of proposal densities
          const R d = (x[i] - y[i]) - h * sy[i];
          return z[i] * z[i] * S(0.5) - d * d * inverse;
        });
      } else {
        r = ly - ly;  // NaN where log p is not finite: the step is refused and counted
      }
      const auto finite = is_finite_ratio(r);
      const auto move = adjusted ? (log_u < r) & finite : finite;
      g.each(n, [&](int64_t i) INLINE {
        x[i] = select(move, y[i], x[i]);
        s[i] = select(move, sy[i], s[i]);
      });
      lp = select(move, ly, lp);
      if (mean && t >= c.n_steps - c.n_mean)
        g.each(n, [&](int64_t i) INLINE { mean[i] = mean[i] + x[i]; });
      accept = accept + acceptance(r, finite);
      nonfinite = nonfinite + select(finite, R{}, R{} + S(1));
      if (adjusted && c.factor != S(1)) {
        h = select(r > c.log_high, h * c.factor, select(r >= c.log_low, h, h / c.factor));
        h = select(h < c.cap, h, R{} + c.cap);
      }
      trace(g, c, t + 1, x, lp);
    }
    finish(g, c, x, lp, accept, nonfinite);
    if (c.score_out) g.store(c.score_out, 0, 1, n, s);
    if (c.scale_out) g.store(c.scale_out, h);
    if (mean) {
      const S count = S(c.n_mean);
      g.each(n, [&](int64_t i) INLINE { mean[i] = mean[i] / count; });
      g.store(c.mean_out, 0, 1, n, mean);
    }
  }
};
// Hamiltonian Monte Carlo: unit masses, L leapfrog steps of size ε from fresh momenta.
template <template <class> class E, class S> struct Hmc {
  Energy<S> energy;
  Chains<S> c;
  static int64_t reals(const Chains<S>& c) {
    return posterior_size(c) + 4 * field_size(c.n) + padded(c.n);
  }
  template <class G> HD void operator()(const G& g, typename G::Real* scratch) const {
    using R = typename G::Real;
    const int64_t n = c.n;
    Arrays<R> arrays(scratch);
    const auto post = make_posterior<G, E, S>(g, energy, c, arrays);
    R *x = arrays.take(field_size(n)), *s = arrays.take(field_size(n));
    R *y = arrays.take(field_size(n)), *sy = arrays.take(field_size(n));
    R* p = arrays.take(padded(n));
    g.load(c.x, n, x);
    g.load(c.score, n, s);
    zero_slot(x, n);
    zero_slot(y, n);
    R lp = g.load(c.log_prob), accept{}, nonfinite{};
    const R step = g.load(c.scale), half = step * S(0.5);
    const Key key = make_key(c.seed);
    g.sync();
    for (int64_t t = 0; t < c.n_steps; ++t) {
      const uint32_t stream = uint32_t(pysamp_streams::MOMENTUM) << 24;
      const R log_u = draw<true>(g, key, uint32_t(c.step + t), stream, n, p);
      const R before = g.sum(n, [&](int64_t i) INLINE { return p[i] * p[i]; });
      g.each(n, [&](int64_t i) INLINE {
        p[i] = p[i] + half * s[i];
        y[i] = x[i] + step * p[i];
      });
      for (int64_t l = 1; l < c.n_leapfrog; ++l) {
        post.score(g, y, sy);
        g.each(n, [&](int64_t i) INLINE {
          p[i] = p[i] + step * sy[i];
          y[i] = y[i] + step * p[i];
        });
      }
      const R ly = post.log_prob_and_score(g, y, sy);
      const R after = g.sum(n, [&](int64_t i) INLINE {
        const R last = p[i] + half * sy[i];
        return last * last;
      });
      const R r = (ly - lp) + (before - after) * S(0.5);
      const auto finite = is_finite_ratio(r);
      const auto move = (log_u < r) & finite;
      g.each(n, [&](int64_t i) INLINE {
        x[i] = select(move, y[i], x[i]);
        s[i] = select(move, sy[i], s[i]);
      });
      lp = select(move, ly, lp);
      accept = accept + acceptance(r, finite);
      nonfinite = nonfinite + select(finite, R{}, R{} + S(1));
      trace(g, c, t + 1, x, lp);
    }
    finish(g, c, x, lp, accept, nonfinite);
    g.store(c.score_out, 0, 1, n, s);
  }
};

// Random-walk Metropolis on the whole event: x' = x + δ (2u − 1), u uniform in (0, 1)ⁿ.
template <template <class> class E, class S> struct Metropolis {
  Energy<S> energy;
  Chains<S> c;
  static int64_t reals(const Chains<S>& c) {
    return posterior_size(c) + 2 * field_size(c.n) + padded(c.n);
  }
  template <class G> HD void operator()(const G& g, typename G::Real* scratch) const {
    using R = typename G::Real;
    const int64_t n = c.n;
    Arrays<R> arrays(scratch);
    const auto p = make_posterior<G, E, S>(g, energy, c, arrays);
    R *x = arrays.take(field_size(n)), *y = arrays.take(field_size(n)), *u = arrays.take(padded(n));
    g.load(c.x, n, x);
    zero_slot(x, n);
    zero_slot(y, n);
    R lp = g.load(c.log_prob), accept{}, nonfinite{};
    const R width = g.load(c.scale);
    const Key key = make_key(c.seed);
    g.sync();
    for (int64_t t = 0; t < c.n_steps; ++t) {
      const uint32_t stream = uint32_t(pysamp_streams::METROPOLIS) << 24;
      const R log_u = draw<false>(g, key, uint32_t(c.step + t), stream, n, u);
      g.each(n, [&](int64_t i) INLINE { y[i] = x[i] + width * (u[i] * S(2) - S(1)); });
      const R ly = p.log_prob(g, y), r = ly - lp;
      const auto finite = is_finite_ratio(r);
      const auto move = (log_u < r) & finite;
      g.each(n, [&](int64_t i) INLINE { x[i] = select(move, y[i], x[i]); });
      lp = select(move, ly, lp);
      accept = accept + acceptance(r, finite);
      nonfinite = nonfinite + select(finite, R{}, R{} + S(1));
      trace(g, c, t + 1, x, lp);
    }
    finish(g, c, x, lp, accept, nonfinite);
  }
};

// Single-site Metropolis sweeps, colour by colour: sites of one colour do not interact, so a colour may
// be updated at once. `order` lists the sites by colour; the numbers of a site belong to its rank in
// `order`, two ranks a Philox block in float32. Log densities are left to the caller, who knows whether
// they are wanted.
struct Colours {
  static constexpr int kMax = 4;
  const int32_t* order = nullptr;
  int64_t start[kMax + 1] = {};
  int n = 0;
};

template <template <class> class E, class S> struct Sites {
  Energy<S> energy;
  Chains<S> c;
  Colours colours;
  static int64_t reals(const Chains<S>& c) { return posterior_size(c) + field_size(c.n); }
  template <class G> HD void operator()(const G& g, typename G::Real* scratch) const {
    using R = typename G::Real;
    constexpr int per_block = G::kSize / 2;
    const int64_t n = c.n;
    Arrays<R> arrays(scratch);
    const auto p = make_posterior<G, E, S>(g, energy, c, arrays);
    R* x = arrays.take(field_size(n));
    g.load(c.x, n, x);
    zero_slot(x, n);
    R accept{}, nonfinite{};
    const R width = g.load(c.scale);
    const Key key = make_key(c.seed);
    g.sync();
    for (int64_t t = 0; t < c.n_steps; ++t) {
      const uint32_t stream = uint32_t(pysamp_streams::SITE) << 24;
      R moved{};
      for (int colour = 0; colour < colours.n; ++colour) {
        const int64_t begin = colours.start[colour], end = colours.start[colour + 1];
        const int64_t first = begin / per_block;
        g.each((end + per_block - 1) / per_block - first, [&](int64_t k) INLINE {
          const Block<R> block = g.block(key, uint32_t(first + k), uint32_t(c.step + t), stream);
          UNROLL
          for (int half = 0; half < per_block; ++half) {
            const int64_t rank = (first + k) * per_block + half;
            if (rank < begin || rank >= end) continue;
            const int64_t i = colours.order[rank];
            const R v = x[i] + width * block.signed_uniform_at(2 * half);
            const R r = p.local(g, x, i, v), log_u = block.log_uniform_at(2 * half + 1);
            const auto finite = is_finite_ratio(r);
            const auto move = (log_u < r) & finite;
            x[i] = select(move, v, x[i]);
            moved = moved + select(move, R{} + S(1), R{});
            nonfinite = nonfinite + select(finite, R{}, R{} + S(1));
          }
        });
      }
      accept = accept + g.total(moved) / S(n);
      trace(g, c, t + 1, x, R{});
    }
    g.store(c.x_out, 0, 1, n, x);
    g.store(c.accept, accept / S(c.n_steps));
    g.store(c.nonfinite, g.total(nonfinite));
  }
};

// Entry points; ops.h and chains.cpp instantiate them for the energies of this package, a user's module
// for its own.
template <template <class> class E>
inline constexpr Groups kGroups = kSmallEvents<E> ? Groups::few : Groups::warp;

template <class S, Groups groups, class D> void run(const D& driver) {
  const Chains<S>& c = driver.c;
  const int64_t steps = c.n_steps * (c.n_leapfrog > 1 ? c.n_leapfrog : 1);
  run_chains<S, groups>(c.device, c.n_rows, c.first_chain, c.n, steps, D::reals(c), driver);
}

template <template <class> class E, class S> void evaluate(const Energy<S>& e, const Chains<S>& c) {
  run<S, kGroups<E>>(Evaluate<E, S>{e, c});
}

template <template <class> class E, class S> struct Entry {
  using Call = void(const Energy<S>&, const Chains<S>&);
  static void evaluate(const Energy<S>& e, const Chains<S>& c) { PYSAMP_NS::evaluate<E, S>(e, c); }
  static void mala(const Energy<S>& e, const Chains<S>& c) {
    run<S, kGroups<E>>(Langevin<E, S, true>{e, c});
  }
  static void ula(const Energy<S>& e, const Chains<S>& c) {
    run<S, kGroups<E>>(Langevin<E, S, false>{e, c});
  }
  static void hmc(const Energy<S>& e, const Chains<S>& c) { run<S, kGroups<E>>(Hmc<E, S>{e, c}); }
  static void metropolis(const Energy<S>& e, const Chains<S>& c) {
    run<S, kGroups<E>>(Metropolis<E, S>{e, c});
  }
};

template <template <class> class E, class S> struct SiteEntry {
  static void sites(const Energy<S>& e, const Chains<S>& c, const Colours& colours) {
    run<S, Groups::wide>(Sites<E, S>{e, c, colours});
  }
};

}  // namespace PYSAMP_NS
