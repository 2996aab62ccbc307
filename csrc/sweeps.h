// Sweeps of single-site moves over lattice fields, many in one call, with measurements in between.
//
// A step is a program of sweeps, such as one heat bath and four over-relaxations; sweep k of step t has
// the counter t·K + k, which keys its random numbers. Colours are swept in turn, the sites of a colour
// at once; the numbers of a site belong to its rank in the order of the colours, cell by cell.
//
// Three layouts give the same bits:
//   chains in the lanes of a CPU thread, or a chain to a group of CUDA threads (here);
//   the sites of one chain in the lanes (rows.h), for few chains or large fields on the CPU;
//   a launch for each colour (stream.h), for fields that no CUDA block can hold.
#pragma once
#include "chains.h"
#include "measure.h"
#include "moves.h"

namespace PYSAMP_NS {

enum class Move : int { kMetropolis = 0, kHeatBath = 1, kReflect = 2 };

struct Program {
  static constexpr int kMax = 16;
  int n = 0;
  Move move[kMax] = {};
  int64_t refusing = 0;  // sweeps of a step that can refuse, counted by the host
};

// f(the move of this number), if the field has it; the bindings refuse the others.
template <class Moves, class F>
HD void with_move(const typename Moves::Field& e, Move move, F&& f) {
  if (move == Move::kMetropolis) {
    f(typename Moves::Metropolis{e});
  } else if (move == Move::kHeatBath) {
    if constexpr (Moves::kHeatBath) f(typename Moves::HeatBath{e});
  } else if constexpr (Moves::kReflect) {
    f(typename Moves::Reflect{e});
  }
}

// Rounding lets the lengths of spins drift: after one sweep of 16 they are set back to 1, to second order.
// Counters are scattered first, since in a cycle those of one kernel may all be even.
HD bool renormalises(uint32_t counter) { return scatter(counter) >> 28 == 0; }
template <class R, int N, class T> HD void renormalise(T& site, int n) {
  using S = Scalar<R>;
  R q{};
  components<N>(n, [&](int a) INLINE {
    const R v = site.get(a);
    q = a ? q + v * v : v * v;
  });
  const R factor = S(1.5) - q * S(0.5);
  components<N>(n, [&](int a) INLINE { site.set(a, site.get(a) * factor); });
}

// A site of a field [site][component], each entry a number or a vector of chains.
template <class R, class E> struct FieldSite {
  using Real = R;
  const E& e;
  R* x;
  const R* centres;
  int64_t i;
  HD R get(int a) const { return x[i * e.n() + a]; }
  HD void set(int a, R v) { x[i * e.n() + a] = v; }
  HD R around(int a) const { return e.around(x, i, a); }
  HD R centre(int a) const { return centres[i * e.n() + a]; }
};

// log p of a site, half of each of its bonds, and φ² there.
template <class S, int N, class T>
HD Pair<typename T::Real> site_energy(const Quartic<S, N>& e, const T& site) {
  using R = typename T::Real;
  R q{}, bonds{};
  for (int a = 0; a < e.n(); ++a) {
    const R v = site.get(a);
    q = q + v * v;
    bonds = bonds + v * (e.v1 - site.around(a) * e.half_j);
  }
  const R w = q - e.shift;
  return {-(bonds + (q * e.square + w * w * e.v4)), q};
}
template <class S, int N, class T>
HD Pair<typename T::Real> site_energy(const UnitSpins<S, N>& e, const T& site) {
  using R = typename T::Real;
  R dot{};
  for (int a = 0; a < e.n(); ++a) dot = dot + site.get(a) * site.around(a);
  return {dot * e.half_j, R{} + S(1)};
}

template <class Moves, class S> struct Sweeps {
  Energy<S> energy;
  Chains<S> c;
  Colours colours;
  Program program;
  Recorder<S> recorder;

  using Field = typename Moves::Field;
  static int64_t reals(const Chains<S>& c) { return (c.centre ? 2 : 1) * field_size(c.n); }

  template <class G> HD void operator()(const G& g, typename G::Real* scratch) const {
    using R = typename G::Real;
    const int64_t n = c.n;
    const Field e(energy);
    Arrays<R> arrays(scratch);
    R *x = arrays.take(field_size(n)), *centre = nullptr;
    g.load(c.x, n, x);
    zero_slot(x, n);
    Row<R> row = load_row(g, c);
    if (row.tilted) {
      centre = arrays.take(field_size(n));
      g.load(c.centre, n, centre);
    }
    const Key key = make_key(c.seed);
    R accept{}, bad{};
    Window<R> window;
    g.sync();
    for (int64_t t = 0; t < c.n_steps; ++t) {
      for (int k = 0; k < program.n; ++k) {
        row.sweep = uint32_t((c.step + t) * program.n + k);
        with_move<Moves>(e, program.move[k], [&](const auto& made) INLINE {
          sweep(g, e, made, x, centre, row, key, accept, bad);
        });
        if (Moves::kUnit && renormalises(row.sweep))
          g.each(e.neighbours.n, [&](int64_t i) INLINE {
            FieldSite<R, Field> site{e, x, centre, i};
            renormalise<R, Moves::kComponents>(site, e.n());
          });
      }
      trace(g, c, t + 1, x, R{});
      record(g, e, x, t + 1, window);
    }
    g.store(c.x_out, 0, 1, n, x);
    const int64_t sweeps = c.n_steps * program.refusing;
    g.store(c.accept, sweeps ? accept / S(sweeps) : R{} + S(1));
    g.store(c.nonfinite, g.total(bad));
  }

  template <class G> static HD Row<typename G::Real> load_row(const G& g, const Chains<S>& c) {
    using R = typename G::Real;
    Row<R> row{c.beta != nullptr, c.centre != nullptr, R{}, R{}, R{}, R{}, 0};
    if (row.tempered) row.beta = g.load(c.beta);
    if (row.tilted) row.precision = g.load(c.precision);
    row.half_precision = row.precision * S(0.5);
    if (c.scale) row.width = g.load(c.scale);
    return row;
  }

  template <class G, class M, class R>
  HD void sweep(const G& g, const Field& e, const M& move, R* x, const R* centre, const Row<R>& row,
                const Key& key, R& accept, R& bad) const {
    constexpr int P = sites_per_cell(M::kDraws);
    const int passes = move.passes();
    R moved{};
    for (int pass = 0; pass < passes; ++pass) {
      const uint32_t stream = uint32_t(pysamp_streams::SITE) << 24 | uint32_t(pass);
      for (int colour = 0; colour < colours.n; ++colour) {
        const int64_t begin = colours.start[colour], end = colours.start[colour + 1];
        const int64_t first = begin / P;
        g.each((end + P - 1) / P - first, [&](int64_t k) INLINE {
          SiteNumbers<R> z[P];
          if constexpr (M::kDraws != Draws::kNone)
            draw_sites<M::kDraws>(make_cell(g, key, uint32_t(first + k), row.sweep, stream), z);
          UNROLL
          for (int h = 0; h < P; ++h) {
            const int64_t rank = (first + k) * P + h;
            if (rank < begin || rank >= end) continue;
            FieldSite<R, Field> site{e, x, centre, colours.order[rank]};
            const Outcome<R> outcome = move(site, z[h], row, pass);
            if (M::kRefuses) {
              moved = moved + outcome.moved;
              bad = bad + outcome.bad;
            }
          }
        });
      }
    }
    if (M::kRefuses) accept = accept + g.total(moved) / S(e.neighbours.n * passes);
  }

  template <class G, class R>
  HD void record(const G& g, const Field& e, const R* x, int64_t done, Window<R>& window) const {
    if (!recorder.out || done % recorder.every) return;
    R now[kRecord];
    const int n = e.n();
    const int64_t sites = e.neighbours.n;
    measure(
        g, sites, n, e.neighbours.z / 2, now,
        [&](int64_t k) INLINE {  // by rank, as all layouts add them
          return site_energy(e,
                             FieldSite<R, Field>{e, const_cast<R*>(x), nullptr, colours.order[k]});
        },
        [&](int64_t k, int a) INLINE { return x[colours.order[k] * int64_t(n) + a]; },
        [&](int64_t k, int axis, int a) INLINE {
          return x[e.neighbours.at(colours.order[k], 2 * axis + 1) * n + a];
        },
        [&](int64_t wave, int64_t k) INLINE {
          return recorder.waves[wave * sites + colours.order[k]];
        },
        sites);
    window.add(now);
    if (done % c.thin) return;
    const int64_t kept = c.n_steps / c.thin, at = (done / c.thin - 1) * kRecord;
    window.close(now);
    for (int k = 0; k < kRecord; ++k) g.store(recorder.out, at + k, kept * kRecord, now[k]);
  }
};

}  // namespace PYSAMP_NS
