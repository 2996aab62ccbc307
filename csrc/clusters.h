// Cluster moves of lattice fields: Swendsen–Wang and Wolff, with Wolff's reflection for n components and
// the embedded sign flip for φ⁴. The torch text is pysamp/mcmc/cluster.py.
//
// With σ_x = φ_x·r, r a random direction (r = 1 for one component), the bond of x and y is active with
// probability 1 − exp(−2Jσ_xσ_y) where that is positive, and clusters of active bonds reflect:
// φ_x → φ_x − 2σ_x r. Every bond has a number of its own, so a cluster is the same set however it is
// found; a Wolff step looks only at bonds near its cluster. Four numbers a site: a bond in each
// direction +μ, and the coin of the cluster whose least site it is.
//
// Sources: Swendsen and Wang, Phys. Rev. Lett. 58, 86 (1987); Wolff, Phys. Rev. Lett. 62, 361 (1989);
// φ⁴: Brower and Tamayo, Phys. Rev. Lett. 62, 1087 (1989); labels by union and atomic minimum: Komura,
// Comput. Phys. Commun. 194, 54 (2015).
#pragma once
#include "rows.h"
#include "stream.h"

namespace PYSAMP_NS {

template <class S> struct ClusterCall {
  Energy<S> energy;  // layout and table; params[0] is J
  Chains<S> c;
  Recorder<S> recorder;
  bool wolff = false, unit = false;  // unit: spins of length 1, set back to it now and then
  S* size = nullptr;                 // (rows) mean size of the cluster, or of Σ size² / n_sites²
};

inline constexpr uint32_t kDirection = 1, kSeed = 2;  // substeps beside the bonds
HD uint32_t cluster_stream(uint32_t substep) {
  return uint32_t(pysamp_streams::CLUSTER) << 24 | substep;
}

// Number j of a row of numbers, for one chain.
template <class S> HD Cell<S> scalar_cell(const Key& key, uint32_t index, uint32_t chain,
                                          uint32_t step, uint32_t stream) {
  if constexpr (sizeof(S) == 4)
    return {make_block(philox(key, index, chain, step, stream), S())};
  else
    return {make_block(philox(key, 2 * index, chain, step, stream), S()),
            make_block(philox(key, 2 * index + 1, chain, step, stream), S())};
}

template <class S>
HD void direction(const Key& key, uint32_t chain, uint32_t step, int n, S (&r)[kMaxComponents]) {
  if (n == 1) {
    r[0] = S(1);
    return;
  }
  constexpr int K = Block<S>::kSize;
  for (int b = 0; b * K < n; ++b) {
    S v[K];
    make_block(philox(key, uint32_t(b), chain, step, cluster_stream(kDirection)), S()).normals(v);
    for (int j = 0; j < K && b * K + j < n; ++j) r[b * K + j] = v[j];
  }
  S q = r[0] * r[0];
  for (int a = 1; a < n; ++a) q = q + r[a] * r[a];
  const S inverse = S(1) / sqrt_rn(q);
  for (int a = 0; a < n; ++a) r[a] = r[a] * inverse;
}

HD int64_t seed_site(const Key& key, uint32_t chain, uint32_t step, int64_t n_sites) {
  return int64_t(
      uint64_t(philox(key, 0, chain, step, cluster_stream(kSeed)).w0) * uint64_t(n_sites) >> 32);
}

#ifndef __CUDACC__

// One chain at a time, its sites in the lanes where bonds are drawn; the field is held component by
// component in the order of sites.
template <class S> struct ClusterChain {
  using R = Lanes<S>;
  static constexpr int W = kLanes<S>;
  const ClusterCall<S>& call;
  const Ranks<S>& map;  // of the identity order
  const S* waves;
  int n;
  uint32_t chain = 0, step = 0;
  Key key{};
  S coefficient = 0, r[kMaxComponents] = {};
  S* x = nullptr;
  Buffer<uint8_t> active;  // bit μ: the bond to +μ; bit 3: the coin
  Buffer<int32_t> drawn;   // the step in which the vector of a site was drawn
  Buffer<int32_t> mark,
      stack;  // Wolff: the step in which a site was met, the sites of the cluster;
              // Swendsen–Wang: labels, and the sizes of clusters
  int32_t epoch = 0;

  ClusterChain(const ClusterCall<S>& call, const Ranks<S>& map, const S* waves)
      : call(call), map(map), waves(waves), n(int(call.energy.layout[3])), active(map.stride),
        drawn(map.vectors), mark(map.stride), stack(map.stride + 1) {}

  HD R projection(int64_t q, int k) const {  // σ of the sites of vector q, or of their neighbours k
    const RowSite<S> site(map, x, nullptr, q, 0, map.n_sites);
    R sigma = (k < 0 ? site.get(0) : site.next(k, 0));
    if (n == 1) return sigma;
    sigma = sigma * r[0];
    for (int a = 1; a < n; ++a) sigma = sigma + (k < 0 ? site.get(a) : site.next(k, a)) * r[a];
    return sigma;
  }

  // The bonds of one vector of sites.
  void draw(int64_t q) {
    if (drawn[q] == epoch) return;
    drawn[q] = epoch;
    const RowGroup<S> group{chain};
    const Cell<R> cell = group.cell(key, uint32_t(q * W), step, cluster_stream(0));
    const R here = projection(q, -1);
    Int<R> bits = (cell.uniform(3) < S(0.5)) & 8;
    for (int mu = 0; mu < map.z / 2; ++mu) {
      const R log_u = mu == 0   ? cell.log_uniform(0)
                      : mu == 1 ? cell.log_uniform(1)
                                : cell.log_uniform(2);
      const R there = projection(q, 2 * mu + 1);
      bits |= (log_u > (here * there) * coefficient) & (1 << mu);
    }
    for (int l = 0; l < W; ++l) active[q * W + l] = uint8_t(bits[l]);
    if (call.energy.layout[2]) return;
    for (int mu = 0; mu < map.z / 2; ++mu)  // an open lattice has no bonds to outside
      for (int64_t i = q * W; i < (q + 1) * W; ++i)
        if (map.neighbour[(2 * mu + 1) * map.stride + i] >= map.n_sites)
          active[i] = uint8_t(active[i] & ~(1 << mu));
  }

  void reflect(int64_t i) {
    if (n == 1) {
      x[i] = -x[i];
      return;
    }
    S sigma = x[i] * r[0];
    for (int a = 1; a < n; ++a) sigma = sigma + x[a * map.stride + i] * r[a];
    for (int a = 0; a < n; ++a)
      x[a * map.stride + i] = x[a * map.stride + i] - (sigma * S(2)) * r[a];
  }

  // The cluster of a site, into `stack`; returns its size. Bonds are a coin's throw: no branch asks.
  template <int d> int64_t flood(int64_t seed) {
    const int32_t* neighbour = map.neighbour.data;
    int64_t size = 1, looked = 0;
    mark[seed] = epoch;
    stack[0] = int32_t(seed);
    const auto add = [&](int32_t j, int bond) INLINE {
      const int32_t before = mark[j];
      const bool fresh = bond & (before != epoch);
      mark[j] = fresh ? epoch : before;
      stack[size] = j;
      size += fresh;
    };
    while (looked < size) {
      const int64_t i = stack[looked++];
      draw(i / W);
      UNROLL
      for (int mu = 0; mu < d; ++mu) {
        const int32_t back = neighbour[2 * mu * map.stride + i];
        draw(back / W);
        add(neighbour[(2 * mu + 1) * map.stride + i], active[i] >> mu & 1);
        add(back, active[back] >> mu & 1);
      }
    }
    return size;
  }
  // Union by least site, both searches in step (Rem's algorithm): parents lie before their sites.
  void unite(int32_t a, int32_t b) {
    int32_t* parent = mark.data;
    while (parent[a] != parent[b]) {
      if (parent[a] < parent[b]) {
        const int32_t c = a;
        a = b, b = c;
      }
      const int32_t up = parent[a];
      parent[a] = parent[b];
      if (up == a) return;
      a = up;
    }
  }

  S swendsen_wang() {
    const int64_t sites = map.n_sites;
    const int d = map.z / 2;
    int32_t* label = mark.data;
    for (int64_t q = 0; q * W <= sites; ++q) draw(q);
    const int32_t* along = map.neighbour.data + (2 * d - 1) * map.stride;  // +μ of the last axis
    label[0] = 0;
    for (int64_t i = 1; i < sites; ++i) {  // runs along that axis, without a branch
      const bool joined = (active[i - 1] >> (d - 1) & 1) & (along[i - 1] == i);
      label[i] = joined ? label[i - 1] : int32_t(i);
    }
    for (int mu = 0; mu < d; ++mu) {
      const int32_t* forward = map.neighbour.data + (2 * mu + 1) * map.stride;
      for (int64_t first = 0; first < sites; first += 64) {
        const int64_t count = sites - first < 64 ? sites - first : 64;
        uint64_t bonds = 0;
        for (int64_t l = 0; l < count; ++l) {
          const int64_t i = first + l;
          const bool done = mu == d - 1 && along[i] == i + 1;
          bonds |= uint64_t((active[i] >> mu & 1) & !done) << l;
        }
        for (; bonds; bonds &= bonds - 1) {
          const int64_t i = first + __builtin_ctzll(bonds);
          unite(int32_t(i), forward[i]);
        }
      }
    }
    for (int64_t i = 0; i < sites; ++i) stack[i] = 0;
    for (int64_t i = 0; i < sites; ++i) {
      label[i] = label[label[i]];
      ++stack[label[i]];
    }
    double squares = 0;
    for (int64_t i = 0; i < sites; ++i) {
      squares += double(stack[i]) * double(stack[i]);
      const bool turns = active[label[i]] >> 3 & 1;
      if (n == 1)
        x[i] = turns ? -x[i] : x[i];
      else if (turns)
        reflect(i);
    }
    return S(squares / (double(sites) * double(sites)));
  }

  S wolff() {
    const int64_t seed = seed_site(key, chain, step, map.n_sites);
    const int64_t size = map.z == 2 ? flood<1>(seed) : map.z == 4 ? flood<2>(seed) : flood<3>(seed);
    for (int64_t k = 0; k < size; ++k) reflect(stack[k]);
    return S(size) / S(map.n_sites);
  }

  template <class E> void run(int64_t row, const E& e) {
    const Chains<S>& c = call.c;
    const int64_t sites = map.n_sites;
    Buffer<S> field(n * map.stride);
    x = field.data;
    for (int a = 0; a < n; ++a)
      for (int64_t i = 0; i < map.stride; ++i)
        x[a * map.stride + i] = i < sites ? c.x[row * c.n + i * n + a] : S(0);
    const S j = e.j * S(-2);
    coefficient = c.beta ? c.beta[row] * j : j;
    chain = uint32_t(c.first_chain + row);
    key = make_key(c.seed);
    forget();
    Window<R> window;
    S total = 0;
    for (int64_t t = 0; t < c.n_steps; ++t, ++epoch) {
      if (epoch == INT32_MAX) forget();
      step = uint32_t(c.step + t);
      direction(key, chain, step, n, r);
      total += call.wolff ? wolff() : swendsen_wang();
      if (call.unit && n > 1 && renormalises(step))
        for (int64_t q = 0; q < map.vectors; ++q) {
          RowSite<S> site(map, x, nullptr, q, 0, sites);
          renormalise<R, 0>(site, n);
        }
      if (!c.thin) continue;
      const int64_t kept = c.n_steps / c.thin, k = (t + 1) / c.thin - 1;
      if (c.trace_x && (t + 1) % c.thin == 0) copy_out(c.trace_x + (row * kept + k) * c.n);
      if (call.recorder.out)
        record_rows(RowGroup<S>{chain}, e, map, x, waves, call.recorder, c, row, t + 1, window);
    }
    copy_out(c.x_out + row * c.n);
    c.accept[row] = 1;
    c.nonfinite[row] = 0;
    call.size[row] = total / S(c.n_steps);
  }
  void forget() {
    for (int64_t q = 0; q < map.vectors; ++q) drawn[q] = -1;
    for (int64_t i = 0; i < map.stride; ++i) mark[i] = -1;
    epoch = 0;
  }
  void copy_out(S* to) const {
    for (int64_t i = 0; i < map.n_sites; ++i)
      for (int a = 0; a < n; ++a) to[i * n + a] = x[a * map.stride + i];
  }
};

template <class E, class S> void run_clusters(const ClusterCall<S>& call) {
  const Chains<S>& c = call.c;
  if (c.n_rows == 0) return;
  const E e(call.energy);
  const int64_t sites = e.neighbours.n;
  Buffer<int32_t> order(sites);
  for (int64_t i = 0; i < sites; ++i) order[i] = int32_t(i);
  const Ranks<S> map(e.neighbours, order.data);
  const int n_waves = call.recorder.out ? e.neighbours.z : 0;
  const Buffer<S> waves = padded_waves(call.recorder.waves, n_waves, map, order.data);
  int threads = 1;
#ifdef _OPENMP
  if (c.n_rows * sites * c.n_steps > kGrain)
    threads = int(c.n_rows < omp_get_max_threads() ? c.n_rows : omp_get_max_threads());
#endif
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    ClusterChain<S> chain(call, map, waves.data);
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < c.n_rows; ++row) chain.run(row, e);
  }
}

#else

// A block to a chain. Labels and sizes lie in shared memory, or in global memory where they do not fit.
template <class E, class S> struct ClusterBlock {
  ClusterCall<S> call;
  static int64_t reals(const ClusterCall<S>& call) { return call.c.n + 2 * call.energy.layout[0]; }

  __device__ static int root(const int* label, int i) {
    while (label[i] != i) i = label[i];
    return i;
  }
  __device__ static void unite(int* label, int a, int b) {
    a = root(label, a), b = root(label, b);
    while (a != b) {
      if (a < b) {
        const int c = a;
        a = b, b = c;
      }
      const int before = atomicMin(&label[a], b);
      if (before == a) return;  // a was a root, and hangs below b now
      a = root(label, before);
      b = root(label, b);
    }
  }

  template <class G> __device__ void operator()(const G& g, S* scratch) const {
    const Chains<S>& c = call.c;
    const E e(call.energy);
    const int n = e.n();
    const int64_t sites = e.neighbours.n;
    S* x = scratch;
    int *label = reinterpret_cast<int*>(scratch + c.n), *count = label + sites;
    g.load(c.x, c.n, x);
    const S j = e.j * S(-2);
    const S coefficient = c.beta ? g.load(c.beta) * j : j;
    const Key key = make_key(c.seed);
    Window<S> window;
    S total = S(0);
    for (int64_t t = 0; t < c.n_steps; ++t) {
      const uint32_t step = uint32_t(c.step + t);
      S r[kMaxComponents];
      direction(key, g.chain(), step, n, r);
      const auto projection = [&](int64_t i) {
        S sigma = x[i * n];
        if (n == 1) return sigma;
        sigma = sigma * r[0];
        for (int a = 1; a < n; ++a) sigma = sigma + x[i * n + a] * r[a];
        return sigma;
      };
      g.each(sites, [&](int64_t i) { label[i] = int(i), count[i] = 0; });
      g.each(sites, [&](int64_t i) {
        const Cell<S> cell = scalar_cell<S>(key, uint32_t(i), g.chain(), step, cluster_stream(0));
        const S here = projection(i);
        for (int mu = 0; mu < e.neighbours.z / 2; ++mu) {
          const int64_t k = e.neighbours.at(i, 2 * mu + 1);
          if (k < sites && cell.log_uniform(mu) > (here * projection(k)) * coefficient)
            unite(label, int(i), int(k));
        }
      });
      g.each(sites, [&](int64_t i) { atomicAdd(&count[root(label, int(i))], 1); });
      const int mine = call.wolff ? root(label, int(seed_site(key, g.chain(), step, sites))) : -1;
      S sums[1];
      g.sums(sites, sums, [&](int64_t i, S(&sum)[1]) {
        const S share = S(count[i]) / S(sites);
        if (!call.wolff) sum[0] = sum[0] + share * share;
      });
      total += call.wolff ? S(count[mine]) / S(sites) : sums[0];
      g.each(sites, [&](int64_t i) {
        const int top = root(label, int(i));
        const bool flips =
            call.wolff ? top == mine
                       : scalar_cell<S>(key, uint32_t(top), g.chain(), step, cluster_stream(0))
                                 .uniform(3) < S(0.5);
        if (!flips) return;
        const S sigma = projection(i);
        for (int a = 0; a < n; ++a)
          x[i * n + a] = n == 1 ? -x[i] : x[i * n + a] - (sigma * S(2)) * r[a];
      });
      if (call.unit && n > 1 && renormalises(step))
        g.each(sites, [&](int64_t i) {
          StreamSite<S, E> site{e, x, nullptr, i};
          renormalise<S, 0>(site, n);
        });
      if (!c.thin) continue;
      const int64_t kept = c.n_steps / c.thin;
      if (c.trace_x && (t + 1) % c.thin == 0)
        g.store(c.trace_x, (t + 1) / c.thin - 1, kept, c.n, x);
      stream_record(g, e, x, call.recorder, c, t + 1, window, nullptr);
    }
    g.store(c.x_out, 0, 1, c.n, x);
    g.store(c.accept, S(1));
    g.store(c.nonfinite, S(0));
    g.store(call.size, total / S(c.n_steps));
  }
};

template <class E, class S> void run_clusters(const ClusterCall<S>& call) {
  const Chains<S>& c = call.c;
  if (c.n_rows == 0) return;
  DeviceGuard guard(c.device);
  const int64_t sites = call.energy.layout[0];
  if (sites > 256)
    launch_chains<S, 256>(c.device, c.n_rows, uint32_t(c.first_chain),
                          ClusterBlock<E, S>::reals(call), ClusterBlock<E, S>{call});
  else
    launch_chains<S, 32>(c.device, c.n_rows, uint32_t(c.first_chain),
                         ClusterBlock<E, S>::reals(call), ClusterBlock<E, S>{call});
}

#endif

template <class S> void cluster_phi4(const ClusterCall<S>& call);
template <class S> void cluster_spins(const ClusterCall<S>& call);

}  // namespace PYSAMP_NS
