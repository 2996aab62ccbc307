// The Markov chains of the φ⁴ fields.
#include "chains.h"
#include "phi4.h"

namespace PYSAMP_NS {
template struct Entry<Phi4, float>;
template struct Entry<Phi4, double>;
template struct SiteEntry<Phi4, float>;
template struct SiteEntry<Phi4, double>;
}  // namespace PYSAMP_NS
