// Every entry point that the Python modules see. The same names exist in _cpu (g++) and _cuda (nvcc).
#pragma once
#include <vector>

#include "chains.h"
#include "clusters.h"
#include "fields.h"
#include "logistic.h"
#include "mixture.h"
#include "toy.h"

namespace PYSAMP_NS {

enum class Numbers : int { kBits, kUniform, kNormal, kLogUniform };

// Where in the stream a table of numbers lies: rows are chains, `first` counts numbers to skip.
struct Address {
  uint64_t seed;
  int64_t step, stream, first_chain, first;  // stream is stream << 24 | substep
};

// rng.cpp: out (rows, n)
void random_bits(View<int32_t, 2> out, const Address& at);
template <class S> void random_numbers(View<S, 2> out, const Address& at, Numbers kind);

// lattice.cpp: out[i] = Σ_j x[i, j] in the order of sum32
template <class S> void sum_rows(View<S, 2> x, View<S, 1> out);

// chains.cpp: log densities, scores and Markov chains
extern template struct Entry<Phi4, float>;
extern template struct Entry<Phi4, double>;
extern template struct Entry<Soft, float>;
extern template struct Entry<Soft, double>;
extern template struct Entry<Mixture, float>;
extern template struct Entry<Mixture, double>;
extern template struct Entry<Rings, float>;
extern template struct Entry<Rings, double>;
extern template struct Entry<Funnel, float>;
extern template struct Entry<Funnel, double>;
extern template struct Entry<Logistic, float>;
extern template struct Entry<Logistic, double>;
extern template void evaluate<Spins, float>(const Energy<float>&, const Chains<float>&);
extern template void evaluate<Spins, double>(const Energy<double>&, const Chains<double>&);

// coupling.cpp: x (n, d) through a stack of affine couplings, or back; layout as couplings.Shape gives it
template <class S>
void affine_couplings(View<S, 2> x, View<S, 1> params, S scale, const std::vector<int64_t>& layout,
                      bool inverse, View<S, 2> out, View<S, 1> log_det);
#ifndef PYSAMP_CUDA_MODULE  // CPU only: gradients of points and, where grad_params has a size, weights
template <class S>
void affine_couplings_vjp(View<S, 2> image, View<S, 1> params, S scale,
                          const std::vector<int64_t>& layout, bool inverse, View<S, 2> grad_image,
                          View<S, 1> grad_log_det, View<S, 2> grad_x, View<S, 1> grad_params);
#endif

// sweeps_phi4.cpp, sweeps_spins.cpp, clusters.cpp: sweep_phi4, sweep_soft, sweep_spins, cluster_phi4,
// cluster_spins, declared in fields.h and clusters.h

}  // namespace PYSAMP_NS
