// The Markov chains of the Gaussian mixtures.
#include "chains.h"
#include "mixture.h"

namespace PYSAMP_NS {
template struct Entry<Mixture, float>;
template struct Entry<Mixture, double>;
}  // namespace PYSAMP_NS
