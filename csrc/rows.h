// Sweeps with the sites of one chain in the SIMD lanes of the CPU: for few chains, and for fields so
// large that many of them would not stay in cache. Threads share the sites of a colour.
//
// The field is held component by component in the order of ranks, so that the sites of a colour are
// side by side. Where the neighbours of kLanes consecutive ranks are consecutive too, as they are but
// at the edges of a row, one load finds them; elsewhere they are gathered.
#pragma once
#include "sweeps.h"

#ifndef __CUDACC__
namespace PYSAMP_NS {

template <class T> struct Buffer {  // aligned memory that is given back
  void* memory;
  T* data;
  explicit Buffer(int64_t n) : memory(__builtin_malloc(size_t(n) * sizeof(T) + kVectorBytes)) {
    if (!memory) throw std::bad_alloc();
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + kVectorBytes - 1) /
                                kVectorBytes * kVectorBytes);
  }
  Buffer(Buffer&& other) : memory(other.memory), data(other.data) { other.memory = nullptr; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { __builtin_free(memory); }
  T& operator[](int64_t i) { return data[i]; }
  const T& operator[](int64_t i) const { return data[i]; }
};

// The lattice in the order of ranks. Rank n_sites, and the padding behind it, stands for outside.
template <class S> struct Ranks {
  static constexpr int W = kLanes<S>;
  int64_t n_sites, stride, vectors;
  int z;
  Buffer<int32_t> neighbour;  // (z, stride): ranks
  Buffer<int32_t> start;      // (z, vectors): the first of consecutive neighbours, or −1

  Ranks(const Neighbours& lattice, const int32_t* order)
      : n_sites(lattice.n), stride((n_sites + 4 * W) / (4 * W) * (4 * W)), vectors(stride / W),
        z(lattice.z), neighbour(z * stride), start(z * vectors) {
    Buffer<int32_t> rank(n_sites + 1);
    for (int64_t r = 0; r < n_sites; ++r) rank[order[r]] = int32_t(r);
    rank[n_sites] = int32_t(n_sites);
    for (int k = 0; k < z; ++k)
      for (int64_t r = 0; r < stride; ++r)
        neighbour[k * stride + r] = r < n_sites ? rank[lattice.at(order[r], k)] : int32_t(n_sites);
    for (int k = 0; k < z; ++k)
      for (int64_t q = 0; q < vectors; ++q) {
        const int32_t* r = neighbour.data + k * stride + q * W;
        bool consecutive = true;
        for (int l = 1; l < W; ++l) consecutive = consecutive && r[l] == r[0] + l;
        start[k * vectors + q] = consecutive ? r[0] : -1;
      }
  }
};

template <class S> HD Int<Lanes<S>> ranks_from(int64_t first) {
  Int<Lanes<S>> r;
  UNROLL16 for (int l = 0; l < kLanes<S>; ++l) r[l] = l;
  return r + decltype(r[0] + 0)(first);
}

// kLanes sites of consecutive ranks, of which those in [begin, end) may be moved.
template <class S> struct RowSite {
  using Real = Lanes<S>;
  static constexpr int W = kLanes<S>;
  const Ranks<S>& map;
  S* x;
  const S* centres;
  int64_t q;
  bool whole;
  Int<Real> mine;  // mask of the lanes in range

  HD RowSite(const Ranks<S>& map, S* x, const S* centres, int64_t q, int64_t begin, int64_t end)
      : map(map), x(x), centres(centres), q(q), whole(q * W >= begin && (q + 1) * W <= end) {
    const Int<Real> r = ranks_from<S>(q * W);
    mine = (r >= decltype(r[0] + 0)(begin)) & (r < decltype(r[0] + 0)(end));
  }
  HD Real get(int a) const { return load_lanes(x + a * map.stride + q * W); }
  HD void set(int a, Real v) const {
    S* to = x + a * map.stride + q * W;
    store_lanes(to, whole ? v : select(mine, v, load_lanes(to)));
  }
  HD Real next(int k, int a) const {
    const S* from = x + a * map.stride;
    const int32_t first = map.start[k * map.vectors + q];
    if (first >= 0) return load_lanes(from + first);
    return gather_lanes(from, map.neighbour.data + k * map.stride + q * W);
  }
  HD Real around(int a) const {
    Real sum = next(0, a) + next(1, a);
    if (map.z == 2) return sum;
    sum = sum + (next(2, a) + next(3, a));
    return map.z == 4 ? sum : sum + (next(4, a) + next(5, a));
  }
  HD Real centre(int a) const { return load_lanes(centres + a * map.stride + q * W); }
  HD Real in_range(Real v) const { return whole ? v : select(mine, v, Real{}); }
};

// kLanes cells in the lanes, from cell `index` on; sums run over lanes too.
template <class S> struct RowGroup {
  using Real = Lanes<S>;
  static constexpr int W = kLanes<S>;
  uint32_t chain;

  HD Cell<Real> cell(const Key& key, uint32_t first, uint32_t step, uint32_t stream) const {
    const uint64_t from = first;
    if constexpr (sizeof(S) == 4)
      return {blocks_in_lanes<S>(key, chain, from, 1, step, stream)};
    else
      return {blocks_in_lanes<S>(key, chain, 2 * from, 2, step, stream),
              blocks_in_lanes<S>(key, chain, 2 * from + 1, 2, step, stream)};
  }
  // K sums over n vectors of ranks, in the order of sum32 of the numbers in their lanes.
  template <int K, class F> HD void sums(int64_t n, Real (&out)[K], F f) const {
    constexpr int P = 32 / W, per_chunk = kChunk / W;
    S chunks[K][32];
    int64_t c = 0;
    for (int64_t begin = 0; begin < n; begin += per_chunk, ++c) {
      const int64_t end = begin + per_chunk < n ? begin + per_chunk : n;
      Real part[P][K];
      for (int h = 0; h < P; ++h)
        for (int k = 0; k < K; ++k) part[h][k] = Real{};
      for (int64_t q = begin; q < end; ++q) f(q, part[(q - begin) % P]);
      for (int k = 0; k < K; ++k) {
        S column[32];
        for (int l = 0; l < 32; ++l) column[l] = part[l / W][k][l % W];
        const S sum = butterfly(column, 32);
        chunks[k][c % 32] = c < 32 ? sum : chunks[k][c % 32] + sum;
      }
    }
    for (int k = 0; k < K; ++k) out[k] = Real{} + butterfly(chunks[k], c < 32 ? int(c) : 32);
  }
};

// a₀ b₀ a₁ b₁ … in two vectors.
template <class S> HD void riffle(Lanes<S> a, Lanes<S> b, Lanes<S>& low, Lanes<S>& high) {
  constexpr int W = kLanes<S>;
  Int<Lanes<S>> l, h;
  UNROLL16 for (int i = 0; i < W; ++i) {
    l[i] = i / 2 + i % 2 * W;
    h[i] = i / 2 + i % 2 * W + W / 2;
  }
  low = __builtin_shuffle(a, b, l);
  high = __builtin_shuffle(a, b, h);
}
// Numbers of cells become numbers of ranks.
template <class S> HD void by_rank(Lanes<S> (&v)[2]) { riffle<S>(v[0], v[1], v[0], v[1]); }
template <class S> HD void by_rank(Lanes<S> (&v)[4]) {
  Lanes<S> a, b, c, d;
  riffle<S>(v[0], v[2], a, b);
  riffle<S>(v[1], v[3], c, d);
  riffle<S>(a, c, v[0], v[1]);
  riffle<S>(b, d, v[2], v[3]);
}

// Measure one chain, and keep what its window holds.
template <class S, class E>
void record_rows(const RowGroup<S>& g, const E& e, const Ranks<S>& map, S* x, const S* waves,
                 const Recorder<S>& recorder, const Chains<S>& c, int64_t row, int64_t done,
                 Window<Lanes<S>>& window) {
  using R = Lanes<S>;
  constexpr int W = kLanes<S>;
  if (!recorder.out || done % recorder.every) return;
  R now[kRecord];
  const auto site = [&](int64_t q) INLINE {
    return RowSite<S>(map, x, nullptr, q, 0, map.n_sites);
  };
  measure(
      g, (map.n_sites + W - 1) / W, e.n(), map.z / 2, now,
      [&](int64_t q) INLINE {
        const RowSite<S> here = site(q);
        const Pair<R> both = site_energy(e, here);
        return Pair<R>{here.in_range(both.first), here.in_range(both.second)};
      },
      [&](int64_t q, int a) INLINE { return site(q).get(a); },
      [&](int64_t q, int axis, int a) INLINE { return site(q).next(2 * axis + 1, a); },
      [&](int64_t k, int64_t q) INLINE { return load_lanes(waves + k * map.stride + q * W); },
      map.n_sites);
  window.add(now);
  if (done % c.thin) return;
  window.close(now);
  S* out = recorder.out + (row * (c.n_steps / c.thin) + done / c.thin - 1) * kRecord;
  for (int k = 0; k < kRecord; ++k) out[k] = now[k][0];
}

// The waves of a recorder in the order of ranks.
template <class S>
Buffer<S> padded_waves(const S* waves, int n, const Ranks<S>& map, const int32_t* order) {
  Buffer<S> out(n * map.stride + 1);
  for (int k = 0; k < n; ++k)
    for (int64_t r = 0; r < map.stride; ++r)
      out[k * map.stride + r] = r < map.n_sites ? waves[k * map.n_sites + order[r]] : S(0);
  return out;
}

template <class Moves, class S> struct RowSweeps {
  using Field = typename Moves::Field;
  using R = Lanes<S>;
  static constexpr int W = kLanes<S>;
  const Sweeps<Moves, S>& all;
  const Ranks<S>& map;
  const S* waves;  // by rank
  int threads;

  void chain(int64_t row) const {
    const Chains<S>& c = all.c;
    const Field e(all.energy);
    const int n = e.n();
    const int64_t sites = map.n_sites, event = c.n;
    Buffer<S> field(n * map.stride), tilt(c.centre ? n * map.stride : 1);
    S *x = field.data, *centre = tilt.data;
    to_ranks(c.x + row * event, x, n);
    if (c.centre) to_ranks(c.centre + row * event, centre, n);
    Row<R> base{c.beta != nullptr, c.centre != nullptr, R{}, R{}, R{}, R{}, 0};
    if (c.beta) base.beta = base.beta + c.beta[row];
    if (c.precision) base.precision = base.precision + c.precision[row];
    base.half_precision = base.precision * S(0.5);
    if (c.scale) base.width = base.width + c.scale[row];
    const Key key = make_key(c.seed);
    const RowGroup<S> group{uint32_t(c.first_chain + row)};
    Buffer<S> counts(threads * 2 * 64);  // a cache line each
    S accept = 0, bad = 0;
    Window<R> window;

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      int me = 0;
#ifdef _OPENMP
      me = omp_get_thread_num();
#endif
      Row<R> mine = base;
      for (int64_t t = 0; t < c.n_steps; ++t) {
        for (int k = 0; k < all.program.n; ++k) {
          mine.sweep = uint32_t((c.step + t) * all.program.n + k);
          bool counted = false;
          with_move<Moves>(e, all.program.move[k], [&](const auto& made) INLINE {
            counted = sweep(group, made, x, centre, mine, key, me, counts);
          });
          if (me == 0 && counted) {
            S moved = 0;
            for (int w = 0; w < threads; ++w) moved += counts[w * 128], bad += counts[w * 128 + 64];
            accept += moved;
          }
          if (Moves::kUnit && renormalises(mine.sweep)) {
            for (int64_t q = me; q < map.vectors; q += threads) {
              RowSite<S> site(map, x, centre, q, 0, sites);
              renormalise<R, Moves::kComponents>(site, n);
            }
          }
#pragma omp barrier
        }
        if (me == 0) keep(group, e, row, t + 1, x, window);
#pragma omp barrier
      }
    }
    from_ranks(x, c.x_out + row * event, n);
    const int64_t sweeps = c.n_steps * all.program.refusing;
    c.accept[row] = sweeps ? accept / S(sweeps) : S(1);
    c.nonfinite[row] = bad;
  }

  void to_ranks(const S* from, S* to, int n) const {
    for (int a = 0; a < n; ++a)
      for (int64_t r = 0; r < map.stride; ++r)
        to[a * map.stride + r] = r < map.n_sites ? from[all.colours.order[r] * n + a] : S(0);
  }
  void from_ranks(const S* from, S* to, int n) const {
    for (int64_t r = 0; r < map.n_sites; ++r)
      for (int a = 0; a < n; ++a) to[all.colours.order[r] * n + a] = from[a * map.stride + r];
  }

  template <class M>
  bool sweep(const RowGroup<S>& g, const M& move, S* x, const S* centre, const Row<R>& row,
             const Key& key, int me, Buffer<S>& counts) const {
    constexpr int P = sites_per_cell(M::kDraws);
    const int passes = move.passes();
    R moved{}, bad{};
    for (int pass = 0; pass < passes; ++pass) {
      const uint32_t stream = uint32_t(pysamp_streams::SITE) << 24 | uint32_t(pass);
      for (int colour = 0; colour < all.colours.n; ++colour) {
        const int64_t begin = all.colours.start[colour], end = all.colours.start[colour + 1];
        const int64_t first = begin / (P * W), last = (end + P * W - 1) / (P * W);
        const int64_t from = first + (last - first) * me / threads,
                      to = first + (last - first) * (me + 1) / threads;
        for (int64_t group = from; group < to; ++group) {
          R a[P], b[P];
          if constexpr (M::kDraws != Draws::kNone) {
            SiteNumbers<R> z[P];
            draw_sites<M::kDraws>(g.cell(key, uint32_t(group * W), row.sweep, stream), z);
            UNROLL
            for (int h = 0; h < P; ++h) a[h] = z[h].a, b[h] = z[h].b;
            by_rank<S>(a);
            if (P == 2) by_rank<S>(b);
          }
          UNROLL
          for (int h = 0; h < P; ++h) {
            const int64_t q = group * P + h;
            if (q * W >= end || (q + 1) * W <= begin) continue;
            RowSite<S> site(map, x, centre, q, begin, end);
            const SiteNumbers<R> numbers =
                M::kDraws != Draws::kNone ? SiteNumbers<R>{a[h], b[h]} : SiteNumbers<R>{R{}, R{}};
            const Outcome<R> outcome = move(site, numbers, row, pass);
            if (M::kRefuses) {
              moved = moved + site.in_range(outcome.moved);
              bad = bad + site.in_range(outcome.bad);
            }
          }
        }
#pragma omp barrier
      }
    }
    if (!M::kRefuses) return false;
    S total = 0, refused = 0;
    for (int l = 0; l < W; ++l) total += moved[l], refused += bad[l];
    counts[me * 128] = total, counts[me * 128 + 64] = refused;
#pragma omp barrier
    if (me == 0) {  // the mean fraction of the sweep, in the place of the count
      S sum = 0;
      for (int w = 0; w < threads; ++w) sum += counts[w * 128];
      for (int w = 0; w < threads; ++w) counts[w * 128] = S(0);
      counts[0] = sum / S(map.n_sites * passes);
    }
    return true;
  }

  void keep(const RowGroup<S>& g, const Field& e, int64_t row, int64_t done, S* x,
            Window<R>& window) const {
    const Chains<S>& c = all.c;
    const int64_t kept = c.thin ? c.n_steps / c.thin : 0;
    if (c.trace_x && done % c.thin == 0)
      from_ranks(x, c.trace_x + (row * kept + done / c.thin - 1) * c.n, e.n());
    record_rows(g, e, map, x, waves, all.recorder, c, row, done, window);
  }
};

template <class Moves, class S> void run_rows(const Sweeps<Moves, S>& all) {
  const Chains<S>& c = all.c;
  const typename Moves::Field e(all.energy);
  const Ranks<S> map(e.neighbours, all.colours.order);
  const Buffer<S> waves = padded_waves(all.recorder.waves, all.recorder.out ? e.neighbours.z : 0,
                                       map, all.colours.order);
  // A barrier between colours costs about a microsecond: a few hundred site updates.
  int most = 1;
#ifdef _OPENMP
  most = omp_get_max_threads();
#endif
  const int64_t sites = map.n_sites;
  const bool inside = c.n_rows < most && sites >= 4096 && sites * c.n_steps > kGrain;
  if (inside || most == 1 || c.n_rows * sites * c.n_steps <= kGrain) {
    const RowSweeps<Moves, S> rows{all, map, waves.data, inside ? most : 1};
    for (int64_t row = 0; row < c.n_rows; ++row) rows.chain(row);
    return;
  }
  const RowSweeps<Moves, S> rows{all, map, waves.data, 1};
#pragma omp parallel for schedule(dynamic) num_threads(most)
  for (int64_t row = 0; row < c.n_rows; ++row) rows.chain(row);
}

}  // namespace PYSAMP_NS
#endif
