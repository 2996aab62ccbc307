// What an energy functor is given, and the wrapper that tempers and tilts it.
//
// The contract of a functor E<S>, the only thing a new native target has to write:
//   E(const Energy<S>&)                        copies what it needs; runs on host and device
//   static void check(energy, n, n_params, n_table)     host only: throws std::invalid_argument
//   log_prob(g, x) -> R                        x: n numbers R and kOutside zeros behind them
//   score(g, x, s)                             s[i] = ∂ log p / ∂ x_i
//   log_prob_and_score(g, x, s) -> R           both in one pass
//   local(x, i, v) -> R                        log p(x with x_i → v) − log p(x); only for site moves
// `g` is a group of group.h: g.sum(n, f) adds f(i) in the defined order, g.each(n, f) calls f(i). The
// functor is branch-free in R, allocates nothing, and never asks which device it runs on.
#pragma once
#include "launch.h"

namespace PYSAMP_NS {

inline constexpr int kMaxLayout = 8;
inline constexpr int kOutside = 8;  // zeros behind a field, for the sites outside an open lattice

template <class S> struct Energy {
  const S* params = nullptr;
  const int32_t* table = nullptr;
  const int32_t* host_table = nullptr;  // the table where `check` can read it, else null
  int64_t layout[kMaxLayout] = {};
  int n_layout = 0;
};

// Whether events may be so small that a warp is too many threads for a chain; a specialisation says no.
template <template <class> class E> inline constexpr bool kSmallEvents = true;

// log p̃(x) = β log p(x) − ½ λ (x − c)ᵀ P (x − c): a rung of a tempering ladder, the posterior of a
// Gaussian observation c with precision λ (P = 1), a point of a path from a Gaussian to p. β, c and λ belong
// to the chain, the symmetric matrix P to all.
template <class E, class R, class S> struct Posterior {
  E energy;
  int64_t n;
  bool tempered, tilted;
  R beta, precision, half_precision;
  const R* centre;
  const S* matrix;  // (n, n) or null: P = 1
  R* pull;          // room for P (x − c), where there is a matrix

  template <class G> HD void multiply(const G& g, const R* x) const {
    g.each(n, [&](int64_t i) INLINE {
      R sum[4] = {R{}, R{}, R{}, R{}};  // four at once hide the latency of the additions
      int64_t j = 0;
      for (; j + 4 <= n; j += 4) {
        UNROLL
        for (int k = 0; k < 4; ++k)
          sum[k] = sum[k] + (x[j + k] - centre[j + k]) * matrix[(j + k) * n + i];
      }
      for (; j < n; ++j) sum[0] = sum[0] + (x[j] - centre[j]) * matrix[j * n + i];
      pull[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    });
  }
  // Of a matrix, `multiply` at the same x comes first.
  template <class G> HD R tilt(const G& g, const R* x) const {
    return half_precision * g.sum(n, [&](int64_t i) INLINE {
      const R d = x[i] - centre[i];
      return matrix ? d * pull[i] : d * d;
    });
  }
  template <class G> HD R log_prob(const G& g, const R* x) const {
    R lp = energy.log_prob(g, x);
    if (tempered) lp = beta * lp;
    if (!tilted) return lp;
    if (matrix) multiply(g, x);
    return lp - tilt(g, x);
  }
  template <class G> HD void finish_score(const G& g, const R* x, R* s) const {
    if (tempered) g.each(n, [&](int64_t i) INLINE { s[i] = beta * s[i]; });
    if (!tilted) return;
    if (matrix) {
      multiply(g, x);
      g.each(n, [&](int64_t i) INLINE { s[i] = s[i] - precision * pull[i]; });
    } else {
      g.each(n, [&](int64_t i) INLINE { s[i] = s[i] - precision * (x[i] - centre[i]); });
    }
  }
  template <class G> HD void score(const G& g, const R* x, R* s) const {
    energy.score(g, x, s);
    finish_score(g, x, s);
  }
  template <class G> HD R log_prob_and_score(const G& g, const R* x, R* s) const {
    R lp = energy.log_prob_and_score(g, x, s);
    finish_score(g, x, s);
    if (tempered) lp = beta * lp;
    return tilted ? lp - tilt(g, x) : lp;
  }
  template <class G> HD R local(const G&, const R* x, int64_t i, R v) const {
    R d = energy.local(x, i, v);
    if (tempered) d = beta * d;
    if (!tilted) return d;
    const R now = x[i] - centre[i], then = v - centre[i];
    return d - half_precision * (then * then - now * now);
  }
};

}  // namespace PYSAMP_NS
