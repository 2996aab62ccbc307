// What is measured of a lattice field: nine numbers, summed over the lattice without leaving the chip.
//
//   0 log p   1 its variance within a window   2 mean of component 0   3 |m|   4 m²   5 m⁴
//   6 φ² per site   7 structure factor / V at the smallest momenta, mean over axes
//   8 (Σ_x φ_x^0 φ_{x+μ}^1 − φ_x^1 φ_{x+μ}^0)² / V, mean over axes
//
// m = Σ_x φ_x / V. The torch text is `record` in pysamp/targets/field.py. A window keeps the means of
// several measurements, and the variance of log p about their mean, which small differences need.
#pragma once
#include "lattice.h"

namespace PYSAMP_NS {

inline constexpr int kRecord = 9;

template <class S> struct Recorder {
  const S* waves = nullptr;  // (2·axes, n_sites): cos and sin of 2π x_μ / L_μ, axis after axis
  int64_t every = 0;         // sweeps between measurements; a record is the mean over `thin` sweeps
  S* out = nullptr;          // (rows, n_steps / thin, kRecord)
};

// The terms are i < n; `site(i)` gives (log p of site i, φ² there); `phi(i, a)` a component; `next(i, axis, a)` the
// component a of the neighbour in direction +axis; `wave(k, i)` a row of the waves.
template <class G, class R, class Site, class Phi, class Next, class Wave>
HD void measure(const G& g, int64_t n, int components, int axes, R (&out)[kRecord], Site site,
                Phi phi, Next next, Wave wave, int64_t n_sites) {
  using S = Scalar<R>;
  const S per_site = S(1) / S(n_sites), per_axis = S(1) / S(axes);
  R energy[2];
  g.sums(n, energy, [&](int64_t i, R(&sum)[2]) INLINE {
    const Pair<R> s = site(i);
    sum[0] = sum[0] + s.first;
    sum[1] = sum[1] + s.second;
  });
  R square{}, structure{};
  for (int a = 0; a < components; ++a) {
    R sums[7];
    g.sums(n, sums, [&](int64_t i, R(&sum)[7]) INLINE {
      const R v = phi(i, a);
      sum[0] = sum[0] + v;
      UNROLL
      for (int k = 0; k < 6; ++k)
        if (k < 2 * axes) sum[k + 1] = sum[k + 1] + v * wave(k, i);
    });
    const R m = sums[0] * per_site;
    if (a == 0) out[2] = m;
    square = square + m * m;
    for (int k = 1; k <= 2 * axes; ++k) {
      const R part = sums[k] * per_site;
      structure = structure + part * part;
    }
  }
  R current[3] = {R{}, R{}, R{}};
  if (components > 1)
    g.sums(n, current, [&](int64_t i, R(&sum)[3]) INLINE {
      const R x = phi(i, 0), y = phi(i, 1);
      UNROLL
      for (int mu = 0; mu < 3; ++mu)
        if (mu < axes) sum[mu] = sum[mu] + (x * next(i, mu, 1) - y * next(i, mu, 0));
    });
  out[0] = energy[0];
  out[1] = R{};
  out[3] = sqrt_rn(square);
  out[4] = square;
  out[5] = square * square;
  out[6] = energy[1] * per_site;
  out[7] = structure * per_axis;
  out[8] = (current[0] * current[0] + current[1] * current[1] + current[2] * current[2]) *
           per_site * per_axis;
}

// The measurements of a window, added up.
template <class R> struct Window {
  R total[kRecord], first, spread;
  int n = 0;
  HD void add(const R (&now)[kRecord]) {
    if (n == 0) {
      first = now[0], spread = R{};
      for (int k = 0; k < kRecord; ++k) total[k] = R{};
    }
    const R shift = now[0] - first;  // sums of log p itself would lose its fluctuations
    total[0] = total[0] + shift;
    spread = spread + shift * shift;
    for (int k = 2; k < kRecord; ++k) total[k] = total[k] + now[k];
    ++n;
  }
  HD void close(R (&out)[kRecord]) {
    using S = Scalar<R>;
    const S share = S(1) / S(n);
    const R mean = total[0] * share, variance = spread * share - mean * mean;
    out[0] = first + mean;
    out[1] = select(variance > S(0), variance, R{});
    for (int k = 2; k < kRecord; ++k) out[k] = total[k] * share;
    n = 0;
  }
};

}  // namespace PYSAMP_NS
