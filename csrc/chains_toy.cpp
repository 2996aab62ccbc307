// The Markov chains of small targets: rings, the funnel, logistic regression.
#include "chains.h"
#include "logistic.h"
#include "toy.h"

namespace PYSAMP_NS {
template struct Entry<Rings, float>;
template struct Entry<Rings, double>;
template struct Entry<Funnel, float>;
template struct Entry<Funnel, double>;
template struct Entry<Logistic, float>;
template struct Entry<Logistic, double>;
}  // namespace PYSAMP_NS
