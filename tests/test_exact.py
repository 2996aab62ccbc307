"""Exact answers against tables, brute-force quadrature, Gaussian integrals and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor

from pysamp.exact import (
    moments_1d,
    moments_2d,
    phi4_chain,
    phi4_lattice,
    stationary_distribution,
)
from pysamp.samples import Samples
from pysamp.targets import Phi4Chain

# h -> log(w- / w+), P(phi_mid > 0) for d = 100, a = 0.1, beta = 20: an independent quadrature,
# rounded to five digits.
CHAIN_TABLE = {
    0.0: (0.0, 0.5),
    0.0009: (0.28058, 0.43031),
    0.002: (0.62351, 0.34898),
    0.0025: (0.77939, 0.31445),
    0.0035: (1.09115, 0.25140),
    0.005: (1.55877, 0.17382),
    0.0075: (2.33812, 0.08801),
    0.01: (3.11744, 0.04239),
    0.025: (7.79174, 0.00041),
}


@pytest.mark.parametrize("h", CHAIN_TABLE)
def test_chain_mode_weights_equal_the_table(h: float) -> None:
    exact = phi4_chain(100, 0.1, 20.0, h)
    log_ratio, weight_plus = CHAIN_TABLE[h]
    assert exact.log_ratio == pytest.approx(log_ratio, abs=1e-5)
    assert exact.weight_plus == pytest.approx(weight_plus, abs=1e-5)
    assert math.log(1 / exact.weight_plus - 1) == pytest.approx(exact.log_ratio, abs=1e-9)


# d -> log Z, E[phi_mid^2], E[U] at h = 0, from a second independent quadrature (801 nodes).
@pytest.mark.parametrize(
    "n_sites, log_z, mid_square, mean_energy",
    [
        (16, -33.53802, 0.95878, 1.18858),
        (32, -59.49546, 0.95587, 1.67149),
        (64, -119.87021, 0.95462, 2.51166),
        (100, -196.91222, 0.95421, 3.42592),
        (128, -261.37708, 0.95406, 4.13144),
    ],
)
def test_chain_moments_equal_the_table(
    n_sites: int, log_z: float, mid_square: float, mean_energy: float
) -> None:
    exact = phi4_chain(n_sites, 0.1, 20.0, 0.0)
    assert exact.log_z == pytest.approx(log_z, abs=1.1e-5)
    assert exact.mid_square == pytest.approx(mid_square, abs=1e-5)
    assert exact.energy / 20.0 == pytest.approx(mean_energy, abs=1e-5)
    assert exact.mid_mean == pytest.approx(0.0, abs=1e-12)
    assert exact.log_ratio == pytest.approx(0.0, abs=1e-12)


def test_chain_with_field_has_larger_mid_square() -> None:
    assert phi4_chain(100, 0.1, 20.0, 0.0025).mid_square == pytest.approx(0.9552, abs=1e-4)


def _chain_energy(phi: Tensor, a: float, beta: float, h: float) -> Tensor:
    """-log gamma written out as the sum it is: (m, d) -> (m,)."""
    d = phi.shape[1]
    padded = torch.nn.functional.pad(phi, (1, 1))
    bonds = (padded[:, 1:] - padded[:, :-1]).square().sum(1)
    sites = ((1 - phi**2) ** 2 / 4 + h * phi).sum(1)
    return beta * (a * d / 2 * bonds + sites / (a * d))


@pytest.mark.parametrize("a, beta, h", [(0.1, 20.0, 0.0), (0.6, 1.5, 0.3), (2.0, 0.7, -0.4)])
@pytest.mark.parametrize("n_sites, n", [(1, 4000), (2, 1200), (3, 160)])
def test_chain_equals_tensor_grid(n_sites: int, n: int, a: float, beta: float, h: float) -> None:
    x_max = 7.0 if beta < 5 else 2.6
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * x_max / n) - x_max  # midpoints
    phi = torch.cartesian_prod(*[axis] * n_sites).reshape(-1, n_sites)
    energy = _chain_energy(phi, a, beta, h)
    weight = (-energy).exp()
    z = weight.sum()
    mid = phi[:, n_sites // 2]
    exact = phi4_chain(n_sites, a, beta, h)
    log_z = float(z.log()) + n_sites * math.log(2 * x_max / n)
    assert exact.log_z == pytest.approx(log_z, abs=1e-9)
    assert exact.energy == pytest.approx(float(weight @ energy / z), rel=1e-9)
    assert exact.mid_mean == pytest.approx(float(weight @ mid / z), abs=1e-9)
    assert exact.mid_square == pytest.approx(float(weight @ mid**2 / z), rel=1e-9)
    # The brute-force half-space is a midpoint sum: second order in its spacing.
    plus = float(weight[mid > 0].sum() / z)
    assert exact.weight_plus == pytest.approx(plus, abs=0.2 * (2 * x_max / n) ** 2)


@pytest.mark.parametrize("n_sites", [7, 32, 100])
def test_chain_energy_is_the_derivative_of_log_z(n_sites: int) -> None:
    # E[-log gamma] = -d log int gamma^s / ds at s = 1, and gamma^s is the chain at inverse
    # temperature s beta.
    def log_z(s: float) -> float:
        return phi4_chain(n_sites, 0.1, 20.0 * s, 0.01).log_z

    eps = 1e-3
    first = (log_z(1 - eps) - log_z(1 + eps)) / (2 * eps)
    second = (log_z(1 - 2 * eps) - log_z(1 + 2 * eps)) / (4 * eps)
    energy = phi4_chain(n_sites, 0.1, 20.0, 0.01).energy
    assert energy == pytest.approx((4 * first - second) / 3, rel=1e-8)


def test_chain_does_not_depend_on_the_grid() -> None:
    reference = phi4_chain(32, 0.1, 20.0, 0.005)
    for n_grid, x_max in ((801, 2.6), (4801, 2.6), (2401, 3.1), (101, 0.5)):
        other = phi4_chain(32, 0.1, 20.0, 0.005, n_grid=n_grid, x_max=x_max)
        for name in ("log_z", "energy", "log_ratio", "mid_mean", "mid_square"):
            assert getattr(other, name) == pytest.approx(getattr(reference, name), abs=1e-8), name


def test_chain_widens_its_grid_when_hot() -> None:
    exact = phi4_chain(1, 0.1, 0.01, 0.3)
    assert float(exact.mid_grid[-1]) > 4.0
    assert float(exact.mid_density[[0, -1]].max()) < 1e-15
    spacing = float(exact.mid_grid[1] - exact.mid_grid[0])
    assert float(exact.mid_density.sum()) * spacing == pytest.approx(1.0, abs=1e-12)
    mean = float((exact.mid_density * exact.mid_grid).sum()) * spacing
    assert mean == pytest.approx(exact.mid_mean, abs=1e-12)
    site = moments_1d(
        lambda x: -0.01 * (0.1 * x**2 + 10.0 * ((1 - x**2) ** 2 / 4 + 0.3 * x)), -9.0, 9.0
    )
    assert exact.log_z == pytest.approx(site.log_z, abs=1e-10)
    assert exact.mid_mean == pytest.approx(site.mean, abs=1e-10)
    assert exact.weight_plus == pytest.approx(1 - float(site.cdf(torch.zeros(()))), abs=1e-7)


@pytest.mark.parametrize("beta", [1e3, 3e3])
def test_cold_chain_equals_laplace_approximation(beta: float) -> None:
    """Each phase is a Gaussian around its minimum, where a product of plain weights underflows."""
    n_sites, a, h = 100, 0.1, 0.0025

    def energy(phi: Tensor) -> Tensor:
        return _chain_energy(phi[None], a, beta, h)[0]

    log_z = []
    for sign in (-1.0, 1.0):
        phi = torch.full((n_sites,), sign, dtype=torch.float64)
        for _ in range(30):
            hessian = torch.autograd.functional.hessian(energy, phi)
            gradient = torch.autograd.functional.jacobian(energy, phi)
            phi = phi - torch.linalg.solve(hessian, gradient)
        assert float(gradient.abs().max()) < 1e-8
        log_z.append(
            float(n_sites / 2 * math.log(2 * math.pi) - energy(phi) - hessian.logdet() / 2)
        )
    exact = phi4_chain(n_sites, a, beta, h)
    # The next order is that of 1 / beta.
    assert exact.log_ratio == pytest.approx(log_z[0] - log_z[1], abs=20 / beta)
    assert exact.log_z == pytest.approx(log_z[0], abs=300 / beta)

    assert math.log(exact.weight_plus) == pytest.approx(-exact.log_ratio, rel=1e-12)
    assert math.isfinite(exact.energy)


def test_summary_says_why_it_has_nothing_exact_to_compare_with() -> None:
    target = Phi4Chain(8, 0.1, 1e6, 0.0)
    with pytest.raises(ValueError, match="phi4_chain"):
        target.mode_weights  # noqa: B018
    x = torch.ones(4, 50, 8)
    x[:, 25:, 4] = -1.0
    info = {"log_z": 1.0, "log_z_error": 0.1}
    summary = Samples(x, torch.zeros(4, 50), target=target, info=info).summary()
    assert [mode["weight"] for mode in summary.modes] == [0.5, 0.5]
    assert summary.facts["mode_changes"] == 4
    assert "log_z_exact" not in summary.facts
    for name in ("mode_weights", "log_z"):
        assert any(note.startswith(f"no exact {name}") for note in summary.notes)
    assert not any("wrong" in sentence for sentence in summary.verdict)
    text = str(summary)
    assert "mode 1      0.5000 ± " in text and "nan" not in text
    assert summary.to_dict()["modes"][0]["z"] is None


def test_chain_field_turns_the_signs() -> None:
    up, down = phi4_chain(9, 0.1, 20.0, 0.02), phi4_chain(9, 0.1, 20.0, -0.02)
    assert up.mid_mean == pytest.approx(-down.mid_mean, rel=1e-10)
    assert up.log_ratio == pytest.approx(-down.log_ratio, rel=1e-10)
    assert up.log_ratio > 0.1  # a positive field favours the negative mode


@pytest.mark.parametrize(
    "change, match",
    [
        ({"n_sites": 0}, "n_sites"),
        ({"a": -0.1}, "a must"),
        ({"beta": 0.0}, "beta"),
        ({"h": math.nan}, "h must"),
        ({"n_grid": 2400}, "n_grid"),
        ({"x_max": math.inf}, "x_max"),
        ({"beta": 1e12}, "nodes"),
        ({"beta": 1e5}, "underflows"),
    ],
)
def test_chain_refuses(change: dict[str, float], match: str) -> None:
    arguments = {"n_sites": 8, "a": 0.1, "beta": 20.0, "h": 0.0} | change
    with pytest.raises(ValueError, match=match):
        phi4_chain(**arguments)  # type: ignore[arg-type]


# ---- lattice -------------------------------------------------------------------------------------


def _adjacency(shape: tuple[int, ...]) -> Tensor:
    """sum_x sum_mu phi_x phi_{x+mu} = phi^T A phi / 2, entry by entry."""
    sites = list(itertools.product(*(range(n) for n in shape)))
    matrix = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    for i, site in enumerate(sites):
        for mu, n in enumerate(shape):
            other = list(site)
            other[mu] = (other[mu] + 1) % n
            j = sites.index(tuple(other))
            matrix[i, j] += 1
            matrix[j, i] += 1
    return matrix


@pytest.mark.parametrize(
    "shape, kappa",
    [
        ((1,), 0.2),
        ((2,), 0.3),
        ((7,), 0.3),
        ((7,), -0.3),
        ((1, 4), 0.1),
        ((2, 2), 0.12),
        ((2, 5), 0.15),
        ((5, 2), 0.15),
        ((3, 3), 0.1),
        ((6, 3), 0.1),
    ],
)
def test_free_lattice_is_gaussian(shape: tuple[int, ...], kappa: float) -> None:
    adjacency = _adjacency(shape)
    n = len(adjacency)
    precision = torch.eye(n, dtype=torch.float64) - kappa * adjacency  # S = phi^T precision phi
    covariance = precision.inverse() / 2
    exact = phi4_lattice(shape, kappa, 0.0)
    log_z = 0.5 * n * math.log(math.pi) - 0.5 * float(precision.logdet())
    assert exact.log_z == pytest.approx(log_z, abs=1e-8)
    assert exact.action == pytest.approx(n / 2, abs=1e-8)
    assert exact.phi_square == pytest.approx(float(covariance[0, 0]), rel=1e-7)
    assert exact.phi_fourth == pytest.approx(3 * float(covariance[0, 0]) ** 2, rel=1e-6)
    strides = [math.prod(shape[mu + 1 :]) for mu in range(len(shape))]
    for mu, stride in enumerate(strides):
        neighbour = stride if shape[mu] > 1 else 0
        assert exact.neighbour[mu] == pytest.approx(float(covariance[0, neighbour]), abs=1e-8)


@pytest.mark.parametrize(
    "shape, kappa, lam, n",
    [
        ((1,), 0.4, 0.5, 400),
        ((2,), 0.3, 0.7, 400),
        ((3,), 0.4, 0.1, 90),
        ((3,), -0.4, 1.0, 90),
        ((1, 2), 0.2, 0.5, 400),
        ((2, 2), 0.25, 0.5, 40),
        ((2, 2), 0.35, 1.0, 40),
    ],
)
def test_lattice_equals_tensor_grid(
    shape: tuple[int, ...], kappa: float, lam: float, n: int
) -> None:
    adjacency = _adjacency(shape)
    sites = len(adjacency)
    axis = torch.linspace(-3.6, 3.6, n, dtype=torch.float64)
    phi = torch.cartesian_prod(*[axis] * sites).reshape(-1, sites)
    bonds = ((phi @ adjacency) * phi).sum(1) / 2
    action = -2 * kappa * bonds + (phi**2 + lam * (phi**2 - 1) ** 2).sum(1)
    weight = (-action).exp()
    z = weight.sum()
    exact = phi4_lattice(shape, kappa, lam)
    spacing = float(axis[1] - axis[0])
    assert exact.log_z == pytest.approx(float(z.log()) + sites * math.log(spacing), abs=1e-6)
    assert exact.action == pytest.approx(float(weight @ action / z), abs=1e-6)
    assert exact.phi_square == pytest.approx(float(weight @ phi[:, 0] ** 2 / z), abs=1e-6)
    assert exact.phi_fourth == pytest.approx(float(weight @ phi[:, 0] ** 4 / z), abs=1e-6)
    assert sites * sum(exact.neighbour) == pytest.approx(float(weight @ bonds / z), abs=1e-6)


def test_lattice_action_is_the_derivative_of_log_z() -> None:
    # d log Z / d kappa = 2 sum_x sum_mu E[phi_x phi_{x+mu}]; d log Z / d lam = -sum_x E[(phi_x^2 -
    # 1)^2].
    shape, kappa, lam, eps = (3, 4), 0.2, 0.3, 3e-4
    exact = phi4_lattice(shape, kappa, lam)
    slope = (
        phi4_lattice(shape, kappa + eps, lam).log_z - phi4_lattice(shape, kappa - eps, lam).log_z
    ) / (2 * eps)
    assert slope == pytest.approx(2 * 12 * sum(exact.neighbour), rel=1e-5)
    slope = (
        phi4_lattice(shape, kappa, lam + eps).log_z - phi4_lattice(shape, kappa, lam - eps).log_z
    ) / (2 * eps)
    assert slope == pytest.approx(-12 * (exact.phi_fourth - 2 * exact.phi_square + 1), rel=1e-5)


def test_lattice_does_not_depend_on_the_orientation() -> None:
    one, two = phi4_lattice((2, 6), 0.25, 0.02), phi4_lattice((6, 2), 0.25, 0.02)
    assert one.log_z == pytest.approx(two.log_z, rel=1e-12)
    assert one.neighbour == pytest.approx(two.neighbour[::-1], rel=1e-12)
    assert one.neighbour[0] > one.neighbour[1]  # the doubled bonds of the short extent


@pytest.mark.parametrize(
    "shape, kappa, lam, match",
    [
        ((), 0.1, 0.1, "shape"),
        ((4, 4), 0.1, 0.1, "shape"),
        ((2, 2, 2), 0.1, 0.1, "shape"),
        ((4,), math.nan, 0.1, "kappa"),
        ((4,), 0.1, -0.1, "lam"),
        ((4,), 0.5, 0.0, "kappa"),
        ((4,), 0.1, 1e7, "narrow"),
    ],
)
def test_lattice_refuses(shape: tuple[int, ...], kappa: float, lam: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        phi4_lattice(shape, kappa, lam)


# ---- finite chains and quadrature ----------------------------------------------------------------


def test_stationary_distribution_of_a_metropolis_chain_is_its_target() -> None:
    log_p = torch.tensor([0.0, -30.0, 1.0, -2.0, -60.0, 0.5], dtype=torch.float64)
    k = len(log_p)
    accept = (log_p[None, :] - log_p[:, None]).clamp(max=0.0).exp()
    matrix = accept / k
    matrix.fill_diagonal_(0.0)
    matrix += torch.diag(1 - matrix.sum(1))
    pi = stationary_distribution(matrix)
    # Relative accuracy, also of the state of weight e^-60.
    torch.testing.assert_close(pi, log_p.softmax(0), rtol=1e-12, atol=0.0)


def test_stationary_distribution_of_a_random_matrix_is_invariant() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.rand(40, 40, generator=generator, dtype=torch.float64) ** 6
    matrix /= matrix.sum(1, keepdim=True)
    pi = stationary_distribution(matrix)
    torch.testing.assert_close(pi @ matrix, pi, rtol=1e-12, atol=0.0)
    assert float(pi.max() / pi.min()) > 1.5


def test_stationary_distribution_of_a_periodic_chain() -> None:
    cycle = torch.eye(5, dtype=torch.float64).roll(1, 1)
    torch.testing.assert_close(
        stationary_distribution(cycle), torch.full((5,), 0.2, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "matrix, match",
    [
        ([[0.5, 0.5], [0.5, 0.4]], "rows that sum to 1"),
        ([[1.5, -0.5], [0.5, 0.5]], "at least 0"),
        ([[math.nan, 1.0], [0.5, 0.5]], "at least 0"),
        ([[1.0, 0.0], [0.5, 0.5]], "no path from state 0 to 1"),
        ([[0.5, 0.5, 0.0]], "\\(k, k\\)"),
    ],
)
def test_stationary_distribution_refuses(matrix: list[list[float]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        stationary_distribution(torch.tensor(matrix, dtype=torch.float64))


def test_moments_1d_of_a_mixture() -> None:
    def log_prob(x: Tensor) -> Tensor:  # 2 (0.3 N(-2, 0.25) + 0.7 N(1, 1))
        left = math.log(0.3) - 0.5 * ((x + 2) / 0.5) ** 2 - math.log(0.5)
        right = math.log(0.7) - 0.5 * (x - 1) ** 2
        return torch.logaddexp(left, right) - 0.5 * math.log(2 * math.pi) + math.log(2)

    m = moments_1d(log_prob, -12.0, 12.0)
    assert m.log_z == pytest.approx(math.log(2), abs=1e-12)
    assert m.mean == pytest.approx(0.1, abs=1e-12)
    assert m.var == pytest.approx(0.3 * 4.25 + 0.7 * 2 - 0.01, abs=1e-12)
    t = torch.linspace(-15, 15, 301, dtype=torch.float64)
    expected = 0.3 * scipy.stats.norm.cdf(t.numpy(), -2, 0.5) + 0.7 * scipy.stats.norm.cdf(
        t.numpy(), 1, 1
    )
    torch.testing.assert_close(m.cdf(t), torch.from_numpy(expected), rtol=0.0, atol=1e-6)
    assert m.cdf(torch.tensor(0.3)).shape == ()


def test_moments_1d_on_a_half_line() -> None:
    m = moments_1d(lambda x: -x, 0.0, 40.0)  # the density does not vanish at lo
    assert m.log_z == pytest.approx(0.0, abs=1e-11)
    assert m.mean == pytest.approx(1.0, abs=1e-10)
    assert m.var == pytest.approx(1.0, abs=1e-10)


def test_moments_2d_of_a_correlated_gaussian() -> None:
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    mean = torch.tensor([0.4, -0.2], dtype=torch.float64)
    precision = cov.inverse()

    def log_prob(x: Tensor) -> Tensor:
        return -0.5 * (((x - mean) @ precision) * (x - mean)).sum(1)

    m = moments_2d(log_prob, (-9.0, -8.0), (9.0, 8.0), n=500)
    assert m.log_z == pytest.approx(math.log(2 * math.pi) + 0.5 * float(cov.logdet()), abs=1e-12)
    torch.testing.assert_close(m.mean, mean, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(m.cov, cov, rtol=0.0, atol=1e-12)
    # Second order for a border along cell sides.
    assert m.weight(lambda x: x[:, 0] > 0) == pytest.approx(scipy.stats.norm.cdf(0.4), abs=1e-4)
    assert m.weight(lambda x: torch.ones(len(x), dtype=torch.bool)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: moments_1d(lambda x: -x, 1.0, 0.0), "lo"),
        (lambda: moments_1d(lambda x: -x, 0.0, 1.0, n=100), "odd"),
        (lambda: moments_1d(lambda x: x / 0 * 0, 0.0, 1.0), "log_prob"),
        (lambda: moments_1d(lambda x: -((x / 1e-4) ** 2), -1.0, 1.0, n=2001), "resolve"),
        (lambda: moments_1d(lambda x: x[:, None], 0.0, 1.0), "log_prob"),
        (lambda: moments_1d(lambda x: torch.full_like(x, -math.inf), 0.0, 1.0), "log_prob"),
        (lambda: moments_2d(lambda x: x[:, 0], (0.0, 0.0), (1.0, -1.0), n=4), "lo"),
        (
            lambda: moments_2d(lambda x: x[:, 0], (0.0, 0.0), (1.0, 1.0), n=4).weight(
                lambda x: x[:, 0]
            ),
            "mask",
        ),
    ],
)
def test_quadrature_refuses(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
