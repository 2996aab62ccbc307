// Sweeps over φ⁴ fields of one component and of several.
#include "fields.h"

namespace PYSAMP_NS {

template <class S> void sweep_phi4(const SweepCall<S>& call) {
  run_sweeps<QuarticMoves<S, 1>>(call);
}
template <class S> void sweep_soft(const SweepCall<S>& call) {
  run_sweeps<QuarticMoves<S, 0>>(call);
}
template void sweep_phi4(const SweepCall<float>&);
template void sweep_phi4(const SweepCall<double>&);
template void sweep_soft(const SweepCall<float>&);
template void sweep_soft(const SweepCall<double>&);

}  // namespace PYSAMP_NS
