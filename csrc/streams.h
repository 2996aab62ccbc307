// The purposes of random numbers: every use draws from a stream of its own. The same list stands in
// pysamp/rng.py (a test compares them). 0–199 belong to pysamp, 200–255 to users.
#pragma once
#include <cstdint>

namespace pysamp_streams {
enum Stream : uint32_t {
  USER = 0,         // rng.uniform and rng.normal where the caller names no stream
  TARGET = 1,       // exact samples of a target, and parameters drawn for a target
  START = 2,        // starting points of chains
  CHECK = 3,        // probe points of check_target and of fingerprints
  LANGEVIN = 10,    // noise of ULA and MALA, and the acceptance of MALA in the word that follows
  MOMENTUM = 11,    // momenta of HMC, and its acceptance in the word that follows
  METROPOLIS = 12,  // proposals and acceptance of random-walk Metropolis
  SITE = 13,      // proposal and acceptance of single-site moves, two words (float64: four) a site
  SWAP = 14,      // exchanges of parallel tempering
  RESAMPLE = 15,  // resampling by weights
  CLUSTER = 16,   // bonds, coins, directions and seeds of cluster moves
  OBSERVATION = 17,  // noise of the observation process of stochastic localisation
  IMPORTANCE = 18,   // points of importance-sampling estimates
  DIFFUSION = 19,    // noise of other stochastic differential equations
  PROPOSAL = 20,     // noise that an independent proposal, such as a flow, is made of
  SELECT = 21,       // acceptance and choice among independent proposals
  ELLIPSE = 22,      // auxiliary points and angles of elliptical slices
  TRAINING = 23,     // noise of the losses of training
};
}
