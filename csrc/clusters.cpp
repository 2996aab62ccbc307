// Cluster moves of φ⁴ fields and of spins.
#include "clusters.h"

namespace PYSAMP_NS {

template <class S> void cluster_phi4(const ClusterCall<S>& call) {
  run_clusters<Quartic<S, 0>>(call);
}
template <class S> void cluster_spins(const ClusterCall<S>& call) {
  run_clusters<UnitSpins<S, 0>>(call);
}
template void cluster_phi4(const ClusterCall<float>&);
template void cluster_phi4(const ClusterCall<double>&);
template void cluster_spins(const ClusterCall<float>&);
template void cluster_spins(const ClusterCall<double>&);

}  // namespace PYSAMP_NS
