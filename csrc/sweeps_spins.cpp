// Sweeps over spins of length 1: Ising, XY, Heisenberg, and up to eight components.
#include "fields.h"

namespace PYSAMP_NS {

template <class S> void sweep_spins(const SweepCall<S>& call) {
  const int64_t n = call.energy.layout[3];
  if (n == 1)
    run_sweeps<SpinMoves<S, 1>>(call);
  else if (n == 2)
    run_sweeps<SpinMoves<S, 2>>(call);
  else if (n == 3)
    run_sweeps<SpinMoves<S, 3>>(call);
  else
    run_sweeps<SpinMoves<S, 0>>(call);
}
template void sweep_spins(const SweepCall<float>&);
template void sweep_spins(const SweepCall<double>&);

}  // namespace PYSAMP_NS
