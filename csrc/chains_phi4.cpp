// Values, scores and Markov chains of the φ⁴ fields, and the energy of spins.
#include "chains.h"
#include "phi4.h"
#include "spins.h"

namespace PYSAMP_NS {
template struct Entry<Phi4, float>;
template struct Entry<Phi4, double>;
template struct Entry<Soft, float>;
template struct Entry<Soft, double>;
template void evaluate<Spins, float>(const Energy<float>&, const Chains<float>&);
template void evaluate<Spins, double>(const Energy<double>&, const Chains<double>&);
}  // namespace PYSAMP_NS
