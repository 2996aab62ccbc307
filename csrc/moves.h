// Moves of one site of a lattice field, given its neighbours: Metropolis, heat bath and over-relaxation,
// each written once for a number R and for SIMD lanes. The torch text is pysamp/mcmc/sites.py.
//
// A move is called with the site (get, set, around, centre of a component), its random numbers, the
// temper and tilt of the row, and returns whether it moved. Sites of one colour do not interact, so that
// moving all of them at once is moving them in turn.
//
// Sources: the over-relaxation of Creutz, Phys. Rev. D 36, 515 (1987) and of Brown and Woch, Phys. Rev.
// Lett. 58, 2394 (1987); the heat bath of the XY model by rejection from a wrapped Cauchy density, Best
// and Fisher, Appl. Statist. 28, 152 (1979); of the Heisenberg model by inversion, Miyatake et al.,
// J. Phys. C 19, 2539 (1986); the frame around a spin, Duff et al., JCGT 6, 1 (2017).
#pragma once
#include "phi4.h"
#include "spins.h"

namespace PYSAMP_NS {

// Numbers come in cells of four: one Philox block in float32, two in float64.
template <class R, class S = Scalar<R>> struct Cell;
template <class R> struct Cell<R, float> {
  Block<R> block;
  HD R signed_uniform(int j) const { return block.signed_uniform_at(j); }
  HD R uniform(int j) const { return block.uniform_at(j); }
  HD R log_uniform(int j) const { return block.log_uniform_at(j); }
  HD Pair<R> normals() const { return Block<R>::pair(block.w0, block.w1); }
};
template <class R> struct Cell<R, double> {
  Block<R> low, high;
  HD const Block<R>& half(int j) const { return j < 2 ? low : high; }
  HD R signed_uniform(int j) const { return half(j).signed_uniform_at(j % 2); }
  HD R uniform(int j) const { return half(j).uniform_at(j % 2); }
  HD R log_uniform(int j) const { return half(j).log_uniform_at(j % 2); }
  HD Pair<R> normals() const {
    R out[2];
    low.normals(out);
    return {out[0], out[1]};
  }
};
template <class G>
HD Cell<typename G::Real> make_cell(const G& g, const Key& key, uint32_t index, uint32_t step,
                                    uint32_t stream) {
  if constexpr (G::kSize == 4)
    return {g.block(key, index, step, stream)};
  else
    return {g.block(key, 2 * index, step, stream), g.block(key, 2 * index + 1, step, stream)};
}

// f(c) for every component c < n; unrolled where N says how many there are.
template <int N, int C = 0, class F> HD void components(int n, F&& f) {
  if constexpr (N == 0) {
    for (int c = 0; c < n; ++c) f(c);
  } else if constexpr (C < N) {
    f(C);
    components<N, C + 1>(n, f);
  }
}

// What a move draws: a cell serves four sites with one number each, or two with two.
enum class Draws { kNone, kUniform, kLogUniform, kSignedAndLog, kTwoSigned, kNormalAndLog };
constexpr int sites_per_cell(Draws d) { return d <= Draws::kLogUniform ? 4 : 2; }

template <class R> struct SiteNumbers {
  R a, b;
};
template <Draws D, class R> HD void draw_sites(const Cell<R>& cell,
                                               SiteNumbers<R> (&z)[sites_per_cell(D)]) {
  if constexpr (D == Draws::kUniform || D == Draws::kLogUniform) {
    UNROLL
    for (int h = 0; h < 4; ++h)
      z[h] = {D == Draws::kUniform ? cell.uniform(h) : cell.log_uniform(h), R{}};
  } else if constexpr (D == Draws::kNormalAndLog) {
    const Pair<R> xi = cell.normals();
    z[0] = {xi.first, cell.log_uniform(2)};
    z[1] = {xi.second, cell.log_uniform(3)};
  } else if constexpr (D != Draws::kNone) {
    UNROLL
    for (int h = 0; h < 2; ++h)
      z[h] = {cell.signed_uniform(2 * h), D == Draws::kTwoSigned ? cell.signed_uniform(2 * h + 1)
                                                                 : cell.log_uniform(2 * h + 1)};
  }
}

// Temper and tilt of the row of a site, the scale of its proposals, and the counter of the sweep.
template <class R> struct Row {
  bool tempered, tilted;
  R beta, precision, half_precision, width;
  uint32_t sweep;
};

template <class R> struct Outcome {
  R moved, bad;  // 0 or 1: moved; refused because the density is NaN or +∞
};
template <class R, class Mask> HD R one_where(Mask m) { return select(m, R{} + Scalar<R>(1), R{}); }
template <class R> HD Outcome<R> always() { return {R{} + Scalar<R>(1), R{}}; }

// A counter over all 32-bit words, by the golden ratio: counters in steps of any K fall everywhere evenly.
HD uint32_t scatter(uint32_t counter) { return counter * 2654435761u; }

// Below this the square of a field has lost its digits, and the field counts as none.
template <class S> inline constexpr S kNoField = sizeof(S) == 4 ? S(1e-30) : S(1e-280);

// Metropolis' decision for a log ratio r.
template <class R> struct Decision {
  decltype(R{} < R{}) move, finite;
  HD Decision(R r, R log_u)
      : move((log_u < r) & (r < Scalar<R>(__builtin_inf()))),
        finite(r < Scalar<R>(__builtin_inf())) {}
  HD Outcome<R> outcome() const {
    return {one_where<R>(move), select(finite, R{}, R{} + Scalar<R>(1))};
  }
};

// Twice the angle whose quarter turns are y: cos πy and sin πy for |y| ≤ 1.
template <class R> HD Pair<R> turn(R y) {
  const R c = cos_quarter(y, Scalar<R>()), s = sin_quarter(y, Scalar<R>());
  return {c * c - s * s, (s * c) * Scalar<R>(2)};
}

// ---------------------------------------------------------------------------------------------------
// φ⁴ fields: one component at a time, a pass each.

template <class S, int N> struct QuarticMetropolis {
  static constexpr Draws kDraws = Draws::kSignedAndLog;
  static constexpr bool kRefuses = true;
  const Quartic<S, N>& e;
  HD int passes() const { return e.n(); }
  template <class T, class R>
  HD Outcome<R> operator()(T& site, const SiteNumbers<R>& z, const Row<R>& row, int a) const {
    const R u = site.get(a), v = u + row.width * z.a;
    const R quartic = (v * v + u * u) + (others(site, e.n(), a) - e.shift) * S(2);
    R r = (v - u) * ((site.around(a) * e.j - e.v1) - (v + u) * (quartic * e.v4 + e.square));
    if (row.tempered) r = row.beta * r;
    if (row.tilted) {
      const R c = site.centre(a), now = u - c, then = v - c;
      r = r - row.half_precision * (then * then - now * now);
    }
    const Decision<R> d(r, z.b);
    site.set(a, select(d.move, v, u));
    return d.outcome();
  }
  template <class T> static HD typename T::Real others(const T& site, int n, int a) {
    typename T::Real q{};  // Σ φ_c² of the other components
    for (int c = 0; c < n; ++c)
      if (N != 1 && c != a) q = q + site.get(c) * site.get(c);
    return q;
  }
};

// One try of the conditional density exp(−A v² − B v⁴ + b v): v from exp(−(A + 2BC) v² + b v), taken
// with probability exp(−B (v² − C)²). Any C ≥ C₀, the variance of the proposal at b = 0, is right; near
// v², with v the mode, it is taken most often. Refusals do not depend on the old value.
template <class S, int N> struct QuarticHeatBath {
  static constexpr Draws kDraws = Draws::kNormalAndLog;
  static constexpr bool kRefuses = true;
  const Quartic<S, N>& e;
  HD int passes() const { return e.n(); }
  template <class T, class R>
  HD Outcome<R> operator()(T& site, const SiteNumbers<R>& z, const Row<R>& row, int a) const {
    const R rest = QuarticMetropolis<S, N>::others(site, e.n(), a);
    R A = (rest - e.shift) * (e.v4 * S(2)) + e.square, B = R{} + e.v4;
    R b = site.around(a) * e.j - e.v1;
    if (row.tempered) A = row.beta * A, B = row.beta * B, b = row.beta * b;
    if (row.tilted) A = A + row.half_precision, b = b + row.precision * site.centre(a);
    const R s = sqrt_rn(A * A + B * S(4));
    const R t = select(A < S(0), (B * S(4)) / (s - A), A + s);
    const R variance = S(1) / t, strength = select(b < S(0), -b, b);
    // Newton's steps fall to the mode, where 4Bv³ + 2Av = |b|, from any point above it: the sum of the mode
    // at b = 0 and of that at A = 0, or the lesser of those at A = 0 and at B = 0.
    const R root = exp_portable(log_portable(strength / (B * S(4))) * S(1.0 / 3));
    const R straight = strength / (A * S(2)), lesser = select(straight < root, straight, root);
    const R well = sqrt_rn(select(A < S(0), -A / (B * S(2)), R{}));
    R v = select(A > S(0), lesser, well + root);
    UNROLL
    for (int newton = 0; newton < 2; ++newton) {
      const R v2 = v * v, slope = v2 * (B * S(12)) + A * S(2);
      v = select(slope > S(0), ((v * v2) * (B * S(8)) + strength) / slope, v);
    }
    const R square = v * v, C = select(square > variance, square, variance);
    const R precise = A + (B * S(2)) * C;
    const R next = b / (precise * S(2)) + sqrt_rn(S(0.5) / precise) * z.a;
    const R gap = next * next - C;
    const auto move = z.b < -((gap * gap) * B);
    site.set(a, select(move, next, site.get(a)));
    return {one_where<R>(move), R{}};
  }
};

// Over-relaxation: the reflection of φ_x about the sum of its neighbours keeps the energy.
template <class E, int N> struct Reflection {
  static constexpr Draws kDraws = Draws::kNone;
  static constexpr bool kRefuses = false;
  const E& e;
  HD int passes() const { return 1; }
  template <class T, class R>
  HD Outcome<R> operator()(T& site, const SiteNumbers<R>&, const Row<R>& row, int) const {
    using S = Scalar<R>;
    R h[kMaxComponents], s[kMaxComponents], dot{}, q{};
    components<N>(e.n(), [&](int c) INLINE {
      h[c] = site.around(c) * e.j;
      if (row.tempered) h[c] = row.beta * h[c];
      s[c] = site.get(c);
      dot = c ? dot + s[c] * h[c] : s[c] * h[c];
      q = c ? q + h[c] * h[c] : h[c] * h[c];
    });
    const R factor = select(q > kNoField<S>, (dot + dot) / q, R{});
    components<N>(e.n(), [&](int c) INLINE { site.set(c, factor * h[c] - s[c]); });
    return always<R>();
  }
};

// ---------------------------------------------------------------------------------------------------
// Spins of length 1. h is the field that acts on the spin.

template <class R, class E, class T> HD R field_on(const E& e, const T& site, const Row<R>& row,
                                                   int a) {
  const R h = site.around(a) * e.j;
  return row.tempered ? row.beta * h : h;
}

// The Ising spin flips; others turn by an angle within ±width in one coordinate plane, one for each sweep.
template <class S, int N> struct SpinMetropolis {
  static constexpr Draws kDraws = N == 1 ? Draws::kLogUniform : Draws::kSignedAndLog;
  static constexpr bool kRefuses = true;
  const UnitSpins<S, N>& e;
  HD int passes() const { return 1; }
  template <class T, class R>
  HD Outcome<R> operator()(T& site, const SiteNumbers<R>& z, const Row<R>& row, int) const {
    if constexpr (N == 1) {
      const R u = site.get(0), v = -u;
      const R r = field_on(e, site, row, 0) * (v - u);
      Decision<R> d(r, z.a);
      // A flip that is always taken would let some states flip for ever among themselves.
      d.move = (z.a < select(r < S(0), r, R{}) - S(0.0625)) & d.finite;
      site.set(0, select(d.move, v, u));
      return d.outcome();
    } else {
      const int n = e.n();
      int a = 0, b = int((scatter(row.sweep) >> 16) % uint32_t(n * (n - 1) / 2)) + 1;
      for (; b >= n; b = b - n + a + 1) ++a;
      const Pair<R> angle = turn(z.a * (row.width * S(0.3183098861837907)));
      const R u = site.get(a), v = site.get(b);
      const R x = u * angle.first - v * angle.second, y = u * angle.second + v * angle.first;
      const R r = field_on(e, site, row, a) * (x - u) + field_on(e, site, row, b) * (y - v);
      const Decision<R> d(r, z.b);
      site.set(a, select(d.move, x, u));
      site.set(b, select(d.move, y, v));
      return d.outcome();
    }
  }
};

template <class S, int N> struct SpinHeatBath;

template <class S> struct SpinHeatBath<S, 1> {
  static constexpr Draws kDraws = Draws::kUniform;
  static constexpr bool kRefuses = false;
  const UnitSpins<S, 1>& e;
  HD int passes() const { return 1; }
  template <class T, class R>
  HD Outcome<R> operator()(T& site, const SiteNumbers<R>& z, const Row<R>& row, int) const {
    const R h = field_on(e, site, row, 0);
    const R up = S(1) / (exp_portable(h * S(-2)) + S(1));
    site.set(0, select(z.a < up, R{} + S(1), R{} - S(1)));
    return always<R>();
  }
};

template <class S> struct SpinHeatBath<S, 2> {
  static constexpr Draws kDraws = Draws::kSignedAndLog;
  static constexpr bool kRefuses = true;
  const UnitSpins<S, 2>& e;
  HD int passes() const { return 1; }
  template <class T, class R>
  HD Outcome<R> operator()(T& site, const SiteNumbers<R>& z, const Row<R>& row, int) const {
    const R h0 = field_on(e, site, row, 0), h1 = field_on(e, site, row, 1);
    const R q = h0 * h0 + h1 * h1, k = sqrt_rn(q), tau = sqrt_rn(q * S(4) + S(1)) + S(1);
    const R k2 = k * S(2);
    const Pair<R> angle = turn(z.a);
    const R d = k2 * angle.first + tau;
    const R f = (tau * angle.first + k2) / d, g = (sqrt_rn(tau * S(2)) * angle.second) / d;
    const R w = tau * S(0.5) - k * f;
    const auto move = z.b < (log_portable(w) + S(1)) - w;
    const R inverse = select(q > kNoField<S>, S(1) / k, R{});
    const R e0 = select(q > kNoField<S>, h0 * inverse, R{} + S(1)), e1 = h1 * inverse;
    site.set(0, select(move, e0 * f - e1 * g, site.get(0)));
    site.set(1, select(move, e1 * f + e0 * g, site.get(1)));
    return {one_where<R>(move), R{}};
  }
};

template <class S> struct SpinHeatBath<S, 3> {
  static constexpr Draws kDraws = Draws::kTwoSigned;
  static constexpr bool kRefuses = false;
  const UnitSpins<S, 3>& e;
  HD int passes() const { return 1; }
  template <class T, class R>
  HD Outcome<R> operator()(T& site, const SiteNumbers<R>& z, const Row<R>& row, int) const {
    const R h0 = field_on(e, site, row, 0), h1 = field_on(e, site, row, 1),
            h2 = field_on(e, site, row, 2);
    const R q = (h0 * h0 + h1 * h1) + h2 * h2, k = sqrt_rn(q);
    // w = ln(cosh k + y sinh k)/k, by its series where the logarithm would lose digits
    const R y = z.a, t = exp_portable(k * S(-2));
    const R direct = log_portable(((S(1) - y) * t + (y + S(1))) * S(0.5)) / k + S(1);
    const R one = S(1) - y * y;
    const R curved = y * S(1.0 / 3) - k * ((y * y) * S(0.25) - S(1.0 / 12));
    const R series = (S(0.5) - k * curved) * (k * one) + y;
    constexpr S small = sizeof(S) == 4 ? S(0.03125) : S(0.0009765625);
    R w = select(k < small, series, direct);
    w = select(w > S(1), R{} + S(1), w);
    w = select(w < S(-1), R{} - S(1), w);
    const R rho = sqrt_rn(S(1) - w * w);
    const Pair<R> angle = turn(z.b);
    const R p = rho * angle.first, m = rho * angle.second;
    const R inverse = select(q > kNoField<S>, S(1) / k, R{});
    const R e0 = h0 * inverse, e1 = h1 * inverse,
            e2 = select(q > kNoField<S>, h2 * inverse, R{} + S(1));
    const R sign = select(e2 >= S(0), R{} + S(1), R{} - S(1));
    const R a = S(-1) / (sign + e2), b = (e0 * e1) * a;
    site.set(0, (e0 * w + ((e0 * e0) * a * sign + S(1)) * p) + b * m);
    site.set(1, (e1 * w + (sign * b) * p) + ((e1 * e1) * a + sign) * m);
    site.set(2, (e2 * w + (-(sign * e0)) * p) + (-e1) * m);
    return always<R>();
  }
};

// ---------------------------------------------------------------------------------------------------
// The moves that a field has.

template <class S, int N> struct QuarticMoves {
  using Field = Quartic<S, N>;
  using Metropolis = QuarticMetropolis<S, N>;
  using HeatBath = QuarticHeatBath<S, N>;
  using Reflect = Reflection<Field, N>;
  static constexpr int kComponents = N;
  static constexpr bool kHeatBath = true, kReflect = N != 1, kUnit = false;
};
template <class S, int N> struct SpinMoves {
  using Field = UnitSpins<S, N>;
  using Metropolis = SpinMetropolis<S, N>;
  using HeatBath = SpinHeatBath<S, N ? N : 1>;
  using Reflect = Reflection<Field, N>;
  static constexpr int kComponents = N;
  static constexpr bool kHeatBath = N != 0, kReflect = N != 1, kUnit = N != 1;
};

}  // namespace PYSAMP_NS
