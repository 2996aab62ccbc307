"""Exact lattice answers against sums over all states, quadrature, Bessel functions and each other."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch

from pysamp import exact, reference
from pysamp.targets.on import LargeN
from pysamp.theory import ising, lattice


# ------------------------------------------------------------------------------------- oracles
def bonds_of(shape, periodic):
    """Pairs of sites, one for each bond, written out from the formula x, x + μ."""
    sites = list(itertools.product(*map(range, shape)))
    for site in sites:
        for mu, extent in enumerate(shape):
            if periodic or site[mu] + 1 < extent:
                other = list(site)
                other[mu] = (other[mu] + 1) % extent
                yield sites.index(site), sites.index(tuple(other))


def summed_ising(shape, beta, periodic=True):
    """log Z and means by a sum over all states, one after another."""
    n_sites, bonds = math.prod(shape), list(bonds_of(shape, periodic))
    spins = np.array(list(itertools.product((-1, 1), repeat=n_sites)))
    energy = -sum(spins[:, i] * spins[:, j] for i, j in bonds)
    weight = np.exp(-beta * energy)
    z = weight.sum()
    m, e = spins.mean(1), energy / n_sites
    means = {
        "energy": e,
        "energy²": e**2,
        "|magnetisation|": abs(m),
        "magnetisation²": m**2,
        "magnetisation⁴": m**4,
    }
    correlations = (weight[:, None] * spins[:, :1] * spins).sum(0) / z
    return math.log(z), {k: weight @ v / z for k, v in means.items()}, correlations


# ------------------------------------------------------------------------------------- Ising
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (3, 3), (2, 2, 3)])
def test_counted_states_are_all_states(shape, periodic):
    states = ising.states(shape, periodic)
    assert float(states.count.sum()) == 2 ** math.prod(shape)
    for beta in (0.2, 0.7):
        log_z, means, _ = summed_ising(shape, beta, periodic)
        assert states.log_z(beta) == pytest.approx(log_z, rel=1e-12)
        assert states.moments(beta) == pytest.approx(means, rel=1e-11)
        assert float(states.probability(beta).sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (3, 3), (4, 3), (3, 4), (4, 4)])
@pytest.mark.parametrize("beta", [0.05, 0.3, ising.BETA_C_2D, 0.6, 2.0])
def test_torus_of_kaufman_is_the_sum_over_states(shape, beta):
    exact_torus, states = ising.torus(shape, beta), ising.states(shape)
    means = states.moments(beta)
    heat = beta**2 * states.n_sites * (means["energy²"] - means["energy"] ** 2)
    assert exact_torus.log_z == pytest.approx(states.log_z(beta), rel=1e-12)
    assert exact_torus.energy == pytest.approx(means["energy"], rel=1e-12)
    assert exact_torus.specific_heat == pytest.approx(heat, rel=1e-9, abs=1e-12)


def test_torus_at_criticality_as_published():
    # Ferdinand and Fisher (1969): the energy of the L × L torus at β_c is −√2 (1 + 0.4405…/L), since
    # (E/N + √2) L → −θ₂θ₃θ₄ / (θ₂ + θ₃ + θ₄) · 2 with nome e^{−π}; the thetas are summed here.
    q = math.exp(-math.pi)
    two = 2 * sum(q ** ((k + 0.5) ** 2) for k in range(8))
    three = 1 + 2 * sum(q ** (k * k) for k in range(1, 8))
    four = 1 + 2 * sum((-1) ** k * q ** (k * k) for k in range(1, 8))
    limit = -2 * two * three * four / (two + three + four)
    for length in (64, 256):
        shift = (ising.torus((length, length), ising.BETA_C_2D).energy + math.sqrt(2)) * length
        assert shift == pytest.approx(limit, rel=2 / length**2)


@pytest.mark.parametrize("beta", [0.15, 0.38, 0.5, 0.9])
def test_large_torus_is_the_infinite_plane(beta):
    torus, plane = ising.torus((500, 500), beta), ising.infinite(beta)
    # In the ordered phase the torus has two states, worth ln 2.
    assert torus.log_z == pytest.approx(
        250_000 * plane.log_z + (math.log(2) if beta > ising.BETA_C_2D else 0), abs=1e-5
    )
    assert torus.energy == pytest.approx(plane.energy, abs=1e-10)
    assert torus.specific_heat == pytest.approx(plane.specific_heat, abs=1e-8)


def test_infinite_plane():
    critical = ising.infinite(ising.BETA_C_2D)
    assert critical.energy == pytest.approx(-math.sqrt(2), rel=1e-12)
    catalan = 0.915965594177219015
    assert critical.log_z == pytest.approx(math.log(2) / 2 + 2 * catalan / math.pi, abs=1e-9)
    assert critical.specific_heat == math.inf
    assert critical.magnetisation == 0.0
    # Low temperature: m = 1 − 2x⁴ − 8x⁶ − 34x⁸, x = e^{−2β}.
    x = math.exp(-2 * 1.3)
    assert ising.infinite(1.3).magnetisation == pytest.approx(
        1 - 2 * x**4 - 8 * x**6 - 34 * x**8, abs=200 * x**10
    )
    for complement in (1e-6, 0.3, 0.999, 1.0):
        found = ising._elliptic(complement)
        parameter = 1 - complement**2
        assert found[0] == pytest.approx(scipy.special.ellipkm1(complement**2), rel=1e-13)
        assert found[1] == pytest.approx(scipy.special.ellipe(parameter), rel=1e-12)


def test_published_numbers_agree_with_each_other():
    assert math.sinh(2 * ising.BETA_C_2D) == pytest.approx(1, rel=1e-15)
    assert pytest.approx(1 / lattice.T_KT, abs=2e-4) == 1.1199
    # The windings of the boundary change 2/π by e^{−2π·…}, a part in ten thousand.
    assert 1e-4 < 2 / math.pi - lattice.XY_JUMP < 2e-4


# ------------------------------------------------------------------------------------- O(n) chains
@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("beta", [1e-3, 0.7, 3.0, 90.0])
def test_eigenvalues_on_the_sphere_are_bessel_functions(n, beta):
    degree = torch.arange(2 if n == 1 else 12, dtype=torch.float64)
    found = lattice._log_sphere_eigenvalues(torch.tensor(beta, dtype=torch.float64), n, degree)
    order = n / 2 - 1 + degree.numpy()
    scaled = scipy.special.gamma(n / 2) * (2 / beta) ** (n / 2 - 1) * scipy.special.ive(order, beta)
    assert found.numpy() == pytest.approx(np.log(scaled) + beta, rel=1e-10, abs=1e-11)


@pytest.mark.parametrize("n_sites", [2, 3, 7, 10])
@pytest.mark.parametrize("periodic", [True, False])
def test_ising_chain_is_the_sum_over_states(n_sites, periodic):
    beta = 0.8
    chain = lattice.spin_chain(n_sites, 1, beta, periodic)
    log_z, means, correlations = summed_ising((n_sites,), beta, periodic)
    assert chain.log_z == pytest.approx(log_z, rel=1e-12)
    assert chain.energy == pytest.approx(means["energy"], rel=1e-12)
    heat = beta**2 * n_sites * (means["energy²"] - means["energy"] ** 2)
    assert chain.specific_heat == pytest.approx(heat, rel=1e-10)
    assert chain.two_point.numpy() == pytest.approx(correlations, rel=1e-12)
    assert chain.magnetisation2 == pytest.approx(means["magnetisation²"], rel=1e-12)
    assert chain.correlation_length == pytest.approx(-1 / math.log(math.tanh(beta)), rel=1e-12)


def test_ising_ring_in_closed_form():
    # On the infinite ring ξ of the second moment is 1/(2 sinh(1/(2ξ))).
    beta, n_sites = 1.1, 400
    chain = lattice.spin_chain(n_sites, 1, beta)
    xi = chain.correlation_length
    assert n_sites > 40 * xi
    # (χ/F − 1) of the geometric two-point function, at the smallest momentum of this ring.
    expected = 1 / (2 * math.sinh(1 / (2 * xi)))
    assert chain.second_moment_length == pytest.approx(expected, rel=1e-6)
    c = beta**2 / math.cosh(beta) ** 2
    assert chain.specific_heat == pytest.approx(c, rel=1e-6)


def test_xy_ring_is_quadrature():
    # Three spins, one at angle 0 by symmetry; a sum over equidistant angles converges exponentially.
    beta, k = 1.7, 96
    angle = 2 * math.pi / k * np.arange(k)
    a, b = np.meshgrid(angle, angle, indexing="ij")
    cosines = np.cos(a) + np.cos(b - a) + np.cos(b)
    currents = np.sin(a) + np.sin(b - a) - np.sin(b)  # sin(θ_{x+1} − θ_x) around the ring
    weight = np.exp(beta * cosines)
    mean = weight.mean()
    chain = lattice.spin_chain(3, 2, beta)
    assert chain.log_z == pytest.approx(math.log(mean) + 3 * math.log(2 * math.pi), rel=1e-12)
    energy = (weight * cosines).mean() / mean
    assert chain.energy == pytest.approx(-energy / 3, rel=1e-12)
    variance = (weight * cosines**2).mean() / mean - energy**2
    assert chain.specific_heat == pytest.approx(beta**2 * variance / 3, rel=1e-10)
    g = [1.0, (weight * np.cos(a)).mean() / mean, (weight * np.cos(b)).mean() / mean]
    assert chain.two_point.numpy() == pytest.approx(g, rel=1e-12)
    assert chain.helicity == pytest.approx(
        (energy - beta * (weight * currents**2).mean() / mean) / 3, rel=1e-11
    )


def test_heisenberg_ring_is_quadrature():
    # Three spins: the first along z, the second in the x–z plane.
    beta = 1.3
    z, w = np.polynomial.legendre.leggauss(40)
    k = 64
    phi = 2 * math.pi / k * np.arange(k)
    z1, z2, f = np.meshgrid(z, z, phi, indexing="ij")
    w1, w2, _ = np.meshgrid(w, w, phi, indexing="ij")
    dots = (z1, z1 * z2 + np.sqrt((1 - z1**2) * (1 - z2**2)) * np.cos(f), z2)
    total = sum(dots)
    weight = w1 * w2 / (4 * k) * np.exp(beta * total)
    chain = lattice.spin_chain(3, 3, beta)
    mean = weight.sum()
    assert chain.log_z == pytest.approx(math.log(mean) + 3 * math.log(4 * math.pi), rel=1e-12)
    assert chain.energy == pytest.approx(-(weight * total).sum() / mean / 3, rel=1e-12)
    g = [1.0, (weight * dots[0]).sum() / mean, (weight * dots[2]).sum() / mean]
    assert chain.two_point.numpy() == pytest.approx(g, rel=1e-12)


def test_open_chains():
    langevin = 1 / math.tanh(1.3) - 1 / 1.3
    chain = lattice.spin_chain(9, 3, 1.3, periodic=False)
    assert chain.energy == pytest.approx(-8 / 9 * langevin, rel=1e-12)
    assert chain.two_point.numpy() == pytest.approx(langevin ** np.arange(9), rel=1e-12)
    four = lattice.spin_chain(5, 4, 2.0, periodic=False)
    ratio = scipy.special.iv(2, 2.0) / scipy.special.iv(1, 2.0)
    assert float(four.two_point[1]) == pytest.approx(ratio, rel=1e-12)
    sites = np.arange(5)
    pairs = ratio ** abs(sites[:, None] - sites)
    assert four.magnetisation2 == pytest.approx(pairs.mean(), rel=1e-12)
    with pytest.raises(ValueError, match="periodic"):
        _ = four.structure


def test_long_ring_forgets_its_closure():
    for n in (1, 2, 3, 5):
        ring = lattice.spin_chain(300, n, 1.0)
        line = lattice.spin_chain(300, n, 1.0, periodic=False)
        assert ring.energy == pytest.approx(line.energy * 300 / 299, rel=1e-9)
        assert ring.two_point[:50].numpy() == pytest.approx(line.two_point[:50].numpy(), rel=1e-9)


# ------------------------------------------------------------------------------------- φ⁴ ring
@pytest.mark.parametrize("kappa, lam", [(0.3, 0.7), (-0.35, 0.2), (0.3, 0.0), (1.2, 3.0)])
@pytest.mark.parametrize("n_sites", [2, 7])
def test_phi4_ring_agrees_with_the_gauss_rule(n_sites, kappa, lam):
    chain, other = (
        lattice.phi4_ring(n_sites, kappa, lam),
        exact.phi4_lattice((n_sites,), kappa, lam),
    )
    assert chain.log_z == pytest.approx(other.log_z, abs=1e-8)
    assert chain.energy == pytest.approx(other.action / n_sites, abs=1e-8)
    assert float(chain.two_point[0]) == pytest.approx(other.phi_square, abs=1e-8)
    assert float(chain.two_point[1]) == pytest.approx(other.neighbour[0], abs=1e-8)


def test_phi4_ring_is_quadrature():
    kappa, lam, k = 0.5, 0.6, 120
    axis = np.linspace(-3.4, 3.4, k)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    action = sum(v**2 + lam * (v**2 - 1) ** 2 for v in (x, y, z)) - 2 * kappa * (
        x * y + y * z + z * x
    )
    weight = np.exp(-action)
    mean = (weight * action).sum() / weight.sum()
    variance = (weight * action**2).sum() / weight.sum() - mean**2
    m2 = (weight * (x + y + z) ** 2).sum() / weight.sum() / 9
    chain = lattice.phi4_ring(3, kappa, lam)
    assert chain.energy == pytest.approx(mean / 3, rel=1e-9)
    assert chain.specific_heat == pytest.approx(variance / 3, rel=1e-9)
    assert chain.magnetisation2 == pytest.approx(m2, rel=1e-9)


def test_free_ring_is_gaussian():
    kappa, n_sites = 0.4, 24
    chain, g = lattice.phi4_ring(n_sites, kappa, 0.0), lattice.phi4_propagator((n_sites,), kappa)
    assert chain.two_point.numpy() == pytest.approx(torch.fft.ifft(g).real.numpy(), abs=1e-9)
    assert chain.energy == pytest.approx(0.5, abs=1e-9)
    assert chain.specific_heat == pytest.approx(0.5, abs=1e-8)
    assert chain.structure == pytest.approx(float(g[1]) / n_sites, abs=1e-9)
    # ⟨φφ⟩ decays as e^{−r/ξ} with cosh(1/ξ) = 1/(2κ).
    assert chain.correlation_length == pytest.approx(1 / math.acosh(1 / (2 * kappa)), rel=1e-8)


# ------------------------------------------------------------------------------------- Gaussian fields
@pytest.mark.parametrize("shape", [(5,), (2, 3), (3, 2, 4)])
def test_propagator_is_the_inverse_matrix(shape):
    kappa = 0.12
    n_sites = math.prod(shape)
    neighbours = reference.lattice_neighbours(shape, True)
    precision = 2 * torch.eye(n_sites, dtype=torch.float64)
    for x in range(n_sites):
        for y in neighbours[x].tolist():
            precision[x, y] -= 2 * kappa  # S = ½ φ·precision·φ
    covariance = precision.inverse()
    g = lattice.phi4_propagator(shape, kappa)
    two_point = torch.fft.ifftn(g).real
    torch.testing.assert_close(two_point.reshape(-1), covariance[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("r, u", [(1.0, 0.0), (0.5, 2.0), (-3.0, 1.5), (-40.0, 0.1)])
def test_gap_equation_is_solved(r, u):
    shape = (6, 5)
    mass2 = lattice.gap_mass2(shape, r, u)
    total = 0.0
    for q in itertools.product(range(6), range(5)):
        momentum = sum(4 * math.sin(math.pi * k / n) ** 2 for k, n in zip(q, shape))
        total += 1 / (momentum + mass2)
    assert mass2 > 0
    assert mass2 == pytest.approx(r + u * total / 30, rel=1e-9, abs=1e-9 * abs(r))


def one_site(n, r, u):
    """⟨φ²⟩/n of a single site by its radial integral."""
    q = np.linspace(1e-6, 4 * math.sqrt(n), 100_001)
    log_weight = (n - 1) * np.log(q) - r * q**2 / 2 - u / (4 * n) * q**4
    weight = np.exp(log_weight - log_weight.max())
    return weight @ q**2 / weight.sum() / n


def two_sites(n, r, u):
    """The same of two sites with their two bonds: the integral over angles is a Bessel function."""
    x = np.linspace(0.2, 2.2, 500)[:, None] * math.sqrt(n)
    y = x.T
    z = 2 * x * y
    angles = np.log(scipy.special.ive(n / 2 - 1, z)) + z + (1 - n / 2) * np.log(z / 2)
    site = (n - 1) * np.log(x) - (1 + r / 2) * x**2 - u / (4 * n) * x**4
    log_weight = site + site.T + angles
    weight = np.exp(log_weight - log_weight.max())
    return (weight * x**2).sum() / weight.sum() / n


@pytest.mark.parametrize("r, u", [(0.5, 2.0), (-1.0, 1.0)])
@pytest.mark.parametrize("shape, radial", [((1,), one_site), ((2,), two_sites)])
def test_large_n_and_its_first_correction(shape, radial, r, u):
    a, b = lattice.large_n_phi2(shape, r, u)
    at_100, at_200 = radial(100, r, u), radial(200, r, u)
    # a + b/n + c/n²: what is left is c/n and of the second order in 1/n.
    assert 2 * at_200 - at_100 == pytest.approx(a, abs=1e-4 * a)
    assert 200 * (at_100 - at_200) == pytest.approx(b, rel=0.02)


def test_two_solvers_of_the_gap_equation_agree():
    for r, u in ((0.3, 0.0), (0.5, 2.0), (-3.0, 1.5), (-40.0, 0.1)):
        target = LargeN((6, 5), r, u)
        assert lattice.gap_mass2((6, 5), r, u) == pytest.approx(target.mass_squared, rel=1e-8)
        torch.testing.assert_close(
            lattice.propagator((6, 5), target.mass_squared), target.propagator, rtol=1e-12, atol=0.0
        )


# ------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: ising.torus((4, 1), 0.4), "shape"),
        (lambda: ising.torus((4, 4, 4), 0.4), "shape"),
        (lambda: ising.torus((4, 4), 0.0), "beta"),
        (lambda: ising.torus((4, 4), math.nan), "beta"),
        (lambda: ising.infinite(-0.1), "beta"),
        (lambda: ising.states((5, 5)), "20 sites"),
        (lambda: ising.states((1, 5)), "shape"),
        (lambda: lattice.spin_chain(1, 1, 0.5), "n_sites"),
        (lambda: lattice.spin_chain(4, 0, 0.5), "n must"),
        (lambda: lattice.spin_chain(4, 2, -0.5), "beta"),
        (lambda: lattice.spin_chain(4, 2, 1e5), "beta"),
        (lambda: lattice.phi4_ring(1, 0.2, 0.1), "n_sites"),
        (lambda: lattice.phi4_ring(4, 0.5, 0.0), "kappa"),
        (lambda: lattice.phi4_ring(4, 0.2, -1.0), "lam"),
        (lambda: lattice.propagator((4,), 0.0), "mass2"),
        (lambda: lattice.phi4_propagator((4, 4), 0.25), "mass2"),
        (lambda: lattice.gap_mass2((4, 4), -1.0, 0.0), "u must"),
        (lambda: lattice.gap_mass2((4, 4), 1.0, -1.0), "u must"),
        (lambda: lattice.gap_mass2((4, 4), math.inf, 1.0), "finite"),
    ],
)
def test_what_has_no_answer_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
