"""How good draws are: convergence, weights of modes, distances, discrepancies, bounds of log Z.

Pure functions of tensors in float64 on the device of their argument. `convergence`: R-hat, ESS, Monte
Carlo errors. `weights`: mode weights and what was lost of them. `transport`: Wasserstein distances.
`distances`: Kolmogorov-Smirnov and variances. `densities`: total variation of kernel estimates.
`discrepancy`: kernels. `bounds`: log Z from weights.
`exact_draws`: inside the modes, and the value that noise alone gives.
"""

from pysamp.metrics.bounds import elbo, eubo, log_z, log_z_error, pareto_k
from pysamp.metrics.convergence import ess, mcse, rhat
from pysamp.metrics.densities import gaussian_kl, sliced_total_variation
from pysamp.metrics.discrepancy import ksd, ksd_squared, median_distance, mmd, mmd_squared
from pysamp.metrics.distances import (
    ks_against,
    ks_statistic,
    sliced_ks,
    sliced_ks_histogram,
    variance_gap,
)
from pysamp.metrics.exact_draws import Floor, WithinModes, noise_floor, within_modes
from pysamp.metrics.transport import sinkhorn2, sliced_wasserstein2, wasserstein2
from pysamp.metrics.weights import (
    Draws,
    Modes,
    collapsed,
    ess_weights,
    free_energy_difference,
    independent_accept,
    jensen_shannon,
    mode_coverage,
    mode_weight_error,
    mode_weights,
    total_variation,
)

__all__ = [
    "Draws",
    "Floor",
    "Modes",
    "WithinModes",
    "collapsed",
    "elbo",
    "ess",
    "ess_weights",
    "eubo",
    "free_energy_difference",
    "gaussian_kl",
    "independent_accept",
    "jensen_shannon",
    "ks_against",
    "ks_statistic",
    "ksd",
    "ksd_squared",
    "log_z",
    "log_z_error",
    "mcse",
    "median_distance",
    "mmd",
    "mmd_squared",
    "mode_coverage",
    "mode_weight_error",
    "mode_weights",
    "noise_floor",
    "pareto_k",
    "rhat",
    "sinkhorn2",
    "sliced_ks",
    "sliced_ks_histogram",
    "sliced_total_variation",
    "sliced_wasserstein2",
    "total_variation",
    "variance_gap",
    "wasserstein2",
    "within_modes",
]
