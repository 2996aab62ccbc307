// Sweeps over fields in the memory of a CUDA device, a launch for each colour: for fields too large for
// one block. Blocks share the sites of a colour; the field never leaves device memory.
#pragma once
#include "sweeps.h"

#ifdef __CUDACC__
namespace PYSAMP_NS {

inline constexpr int kStreamThreads = 256;

// A site of a field as it lies in a tensor, without the zeros behind it.
template <class S, class E> struct StreamSite {
  using Real = S;
  const E& e;
  S* x;
  const S* centres;
  int64_t i;
  HD S get(int a) const { return x[i * e.n() + a]; }
  HD void set(int a, S v) const { x[i * e.n() + a] = v; }
  HD S at(int64_t j, int a) const { return j < e.neighbours.n ? x[j * e.n() + a] : S(0); }
  HD S around(int a) const {
    return e.neighbours.sum(i, [&](int64_t j) { return at(j, a); });
  }
  HD S centre(int a) const { return centres[i * e.n() + a]; }
};

// Measure a field in device memory, the block at once; the first thread keeps the window.
template <class G, class S, class E>
__device__ void stream_record(const G& g, const E& e, S* x, const Recorder<S>& recorder,
                              const Chains<S>& c, int64_t done, Window<S>& window,
                              const int32_t* order) {
  if (!recorder.out || done % recorder.every) return;
  S now[kRecord];
  const int64_t sites = e.neighbours.n;
  const auto site = [&](int64_t k) { return order ? int64_t(order[k]) : k; };
  const auto at = [&](int64_t k) { return StreamSite<S, E>{e, x, nullptr, site(k)}; };
  measure(
      g, sites, e.n(), e.neighbours.z / 2, now, [&](int64_t i) { return site_energy(e, at(i)); },
      [&](int64_t i, int a) { return at(i).get(a); },
      [&](int64_t i, int axis, int a) {
        return at(i).at(e.neighbours.at(site(i), 2 * axis + 1), a);
      },
      [&](int64_t k, int64_t i) { return recorder.waves[k * sites + site(i)]; }, sites);
  if (g.lane() != 0 || !g.valid) return;
  window.add(now);
  if (done % c.thin) return;
  window.close(now);
  for (int k = 0; k < kRecord; ++k)
    recorder.out[(g.row * (c.n_steps / c.thin) + done / c.thin - 1) * kRecord + k] = now[k];
}

template <
    class S> struct Counts {  // a row of the run: what moved, what was refused, the open window
  unsigned long long moved, bad;
  Window<S> window;
};

template <class S> __device__ void add_over_block(unsigned long long* total, S mine) {
  const ThreadGroup<S, kStreamThreads> block{0, 1, 0, true};
  const S sum = block.over_group(mine);
  if (threadIdx.x == 0 && sum > S(0)) atomicAdd(total, static_cast<unsigned long long>(sum));
}

// One pass over one colour of all rows; blocks_per_row blocks to a row.
template <class Moves, class M, class S>
__global__ void stream_colour(Sweeps<Moves, S> all, Counts<S>* counts, unsigned blocks_per_row,
                              int64_t first, int64_t cells, int64_t begin, int64_t end, int pass,
                              uint32_t sweep) {
  using Field = typename Moves::Field;
  constexpr int P = sites_per_cell(M::kDraws);
  const Chains<S>& c = all.c;
  const int64_t row_index = blockIdx.x / blocks_per_row;
  const Field e(all.energy);
  const M move{e};
  const ThreadGroup<S, kStreamThreads> g{row_index, c.n_rows, uint32_t(c.first_chain), true};
  Row<S> row = Sweeps<Moves, S>::load_row(g, c);
  row.sweep = sweep;
  S* x = c.x_out + row_index * c.n;
  const S* centre = c.centre ? c.centre + row_index * c.n : nullptr;
  const Key key = make_key(c.seed);
  const uint32_t stream = uint32_t(pysamp_streams::SITE) << 24 | uint32_t(pass);
  S moved = S(0), bad = S(0);
  for (int64_t k = int64_t(blockIdx.x % blocks_per_row) * kStreamThreads + threadIdx.x; k < cells;
       k += int64_t(blocks_per_row) * kStreamThreads) {
    SiteNumbers<S> z[P];
    if constexpr (M::kDraws != Draws::kNone)
      draw_sites<M::kDraws>(make_cell(g, key, uint32_t(first + k), sweep, stream), z);
    UNROLL
    for (int h = 0; h < P; ++h) {
      const int64_t rank = (first + k) * P + h;
      if (rank < begin || rank >= end) continue;
      StreamSite<S, Field> site{e, x, centre, all.colours.order[rank]};
      const Outcome<S> outcome = move(site, z[h], row, pass);
      if (M::kRefuses) moved += outcome.moved, bad += outcome.bad;
    }
  }
  if (M::kRefuses) {
    add_over_block(&counts[row_index].moved, moved);
    add_over_block(&counts[row_index].bad, bad);
  }
}

// What comes between sweeps, a block to a row: lengths set back, states and records kept.
template <class Moves, class S> struct StreamKeep {
  Sweeps<Moves, S> all;
  Counts<S>* counts;
  int64_t done;
  bool renormalises, keeps;
  template <class G> HD void operator()(const G& g, S*) const {
    using Field = typename Moves::Field;
    const Chains<S>& c = all.c;
    const Field e(all.energy);
    S* x = c.x_out + g.row * c.n;
    if (renormalises)
      g.each(e.neighbours.n, [&](int64_t i) {
        StreamSite<S, Field> site{e, x, nullptr, i};
        renormalise<S, Moves::kComponents>(site, e.n());
      });
    if (!keeps) return;
    const int64_t kept = c.n_steps / c.thin;
    if (c.trace_x && done % c.thin == 0) g.store(c.trace_x, done / c.thin - 1, kept, c.n, x);
    Window<S>& window = counts[g.row].window;
    stream_record(g, e, x, all.recorder, c, done, window, all.colours.order);
  }
};

template <class S> struct StreamFinish {
  Chains<S> c;
  const Counts<S>* counts;
  int64_t proposals;
  HD void operator()(int64_t row) const {
    c.accept[row] = proposals ? S(double(counts[row].moved) / double(proposals)) : S(1);
    c.nonfinite[row] = S(counts[row].bad);
  }
};
template <class S> struct StreamStart {
  Chains<S> c;
  Counts<S>* counts;
  HD void operator()(int64_t i) const {
    if (i < c.n_rows * c.n) c.x_out[i] = c.x[i];
    if (i < c.n_rows) counts[i].moved = counts[i].bad = 0, counts[i].window.n = 0;
  }
};

template <class Moves, class S> struct Stream {
  const Sweeps<Moves, S>& all;
  Counts<S>* counts;

  template <class M> int64_t sweep(const M& move, uint32_t counter) const {
    constexpr int P = sites_per_cell(M::kDraws);
    const Chains<S>& c = all.c;
    const auto stream = static_cast<cudaStream_t>(c.device.stream);
    for (int pass = 0; pass < move.passes(); ++pass)
      for (int colour = 0; colour < all.colours.n; ++colour) {
        const int64_t begin = all.colours.start[colour], end = all.colours.start[colour + 1];
        const int64_t first = begin / P, cells = (end + P - 1) / P - first;
        const int64_t wanted = (cells + kStreamThreads - 1) / kStreamThreads;
        const unsigned blocks = unsigned(wanted < 2048 ? wanted : 2048);
        auto* kernel = stream_colour<Moves, M, S>;
        PYSAMP_LAUNCH(kernel, unsigned(c.n_rows) * blocks, kStreamThreads, 0, stream, all, counts,
                      blocks, first, cells, begin, end, pass, counter);
        after_launch(stream, "sweeps");
      }
    return M::kRefuses ? all.colours.start[all.colours.n] * move.passes() : 0;
  }
};

template <class Moves, class S> void run_stream(const Sweeps<Moves, S>& all) {
  const Chains<S>& c = all.c;
  DeviceGuard guard(c.device);
  const auto stream = static_cast<cudaStream_t>(c.device.stream);
  Counts<S>* counts = nullptr;
  CUDA_CHECK(cudaMallocAsync(reinterpret_cast<void**>(&counts),
                             size_t(c.n_rows) * sizeof(Counts<S>), stream));
  const int64_t numbers = c.n_rows * c.n;
  for_each(c.device, numbers > c.n_rows ? numbers : c.n_rows, StreamStart<S>{c, counts});
  Energy<S> shape = all.energy;  // sizes alone: parameters lie in device memory
  S zeros[5] = {};
  shape.params = zeros;
  const typename Moves::Field e(shape);
  const Stream<Moves, S> run{all, counts};
  int64_t proposals = 0;
  for (int64_t t = 0; t < c.n_steps; ++t) {
    for (int k = 0; k < all.program.n; ++k) {
      const uint32_t counter = uint32_t((c.step + t) * all.program.n + k);
      with_move<Moves>(e, all.program.move[k],
                       [&](const auto& made) { proposals += run.sweep(made, counter); });
      const bool again = Moves::kUnit && renormalises(counter);
      const bool last = k + 1 == all.program.n;
      const bool keeps = last && ((c.trace_x && (t + 1) % c.thin == 0) ||
                                  (all.recorder.out && (t + 1) % all.recorder.every == 0));
      if (again || keeps)
        launch_chains<S, kStreamThreads>(c.device, c.n_rows, uint32_t(c.first_chain), 0,
                                         StreamKeep<Moves, S>{all, counts, t + 1, again, keeps});
    }
  }
  for_each(c.device, c.n_rows, StreamFinish<S>{c, counts, proposals});
  CUDA_CHECK(cudaFreeAsync(counts, stream));
}

}  // namespace PYSAMP_NS
#endif
