// Which layout serves a call, and the entry points of sweeps over lattice fields.
#pragma once
#include "rows.h"
#include "stream.h"

namespace PYSAMP_NS {

enum class Layout : int { kAuto = 0, kChains = 1, kSites = 2 };

template <class S> struct SweepCall {
  Energy<S> energy;
  Chains<S> c;
  Colours colours;
  Program program;
  Recorder<S> recorder;
  Layout layout = Layout::kAuto;
};

// Chains in lanes cost a whole tile however few they are, and one thread a tile. Sites in lanes cost the
// factor below more an update, and all threads help; they also keep a field in cache where a tile of
// chains would not fit. The numbers are measured in docs/decisions/0006.
template <class S> bool sites_in_lanes(const SweepCall<S>& call, int64_t bytes_of_tile) {
  if (call.layout != Layout::kAuto) return call.layout == Layout::kSites;
#ifdef __CUDACC__
  (void)bytes_of_tile;
  return false;
#else
  constexpr int64_t W = kLanes<S>, cache = int64_t(8) << 20;
  const int64_t sites = call.energy.layout[0], rows = call.c.n_rows, tiles = (rows + W - 1) / W;
  if (bytes_of_tile > cache) return true;
  int64_t threads = 1;
#ifdef _OPENMP
  threads = omp_get_max_threads();
#endif
  const double factor = sites >= 4096 ? 1.3 : sites >= 1024 ? 3.0 : 4.5;
  const int64_t helping = rows < threads && sites < 4096 ? rows : threads;
  return double(rows) * factor / double(W * helping) < double((tiles + threads - 1) / threads);
#endif
}

template <class Moves, class S> void run_sweeps(const SweepCall<S>& call) {
  const Sweeps<Moves, S> all{call.energy, call.c, call.colours, call.program, call.recorder};
  const Chains<S>& c = call.c;
  if (c.n_rows == 0) return;
  const int64_t bytes = Sweeps<Moves, S>::reals(c) * int64_t(sizeof(S));
#ifdef __CUDACC__
  if (sites_in_lanes(call, 0) || bytes > shared_limit(c.device)) return run_stream(all);
#else
  if (sites_in_lanes(call, bytes * kLanes<S>)) return run_rows(all);
#endif
  run_chains<S, Groups::wide>(c.device, c.n_rows, c.first_chain, c.n, c.n_steps * call.program.n,
                              Sweeps<Moves, S>::reals(c), all);
}

// ops.h lists these; sweeps_phi4.cpp and sweeps_spins.cpp define them.
template <class S> void sweep_phi4(const SweepCall<S>& call);
template <class S> void sweep_soft(const SweepCall<S>& call);
template <class S> void sweep_spins(const SweepCall<S>& call);

}  // namespace PYSAMP_NS
