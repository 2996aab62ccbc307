"""Observables of lattice fields: brute-force sums, the free propagator, vortices made by hand, scaling."""

from __future__ import annotations

import itertools
import math

import matplotlib
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from pysamp import lattice, lattice_plots


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(*shape: int, seed: int = 0) -> Tensor:
    u = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * u - 1) * math.pi


def vectors(theta: Tensor) -> Tensor:
    return torch.stack([theta.cos(), theta.sin()], -1)


SHAPES = [(5,), (3, 4), (2, 3, 4)]


# ------------------------------------------------------------------------- correlations
@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_structure_factor_and_two_point_are_the_sums_of_their_definition(shape, n):
    x = normal(2, *shape, *([n] if n else []))
    components = [x] if n is None else list(x.unbind(-1))
    sites = list(itertools.product(*map(range, shape)))
    v = len(sites)
    s, g = lattice.structure_factor(x, shape, n), lattice.two_point(x, shape, n)
    assert s.shape == g.shape == (2, *shape)
    for q in sites:
        expected = torch.zeros(2, dtype=torch.float64)
        for phi in components:
            wave = torch.zeros(2, dtype=torch.complex128)
            for site in sites:
                phase = 2 * math.pi * sum(a * b / l for a, b, l in zip(q, site, shape))
                wave += phi[(slice(None), *site)] * complex(math.cos(phase), -math.sin(phase))
            expected += wave.abs().square() / v
        assert torch.allclose(s[(slice(None), *q)], expected, atol=1e-12)
        moved = sum(
            (phi * phi.roll([-r for r in q], list(range(1, 1 + len(shape))))).flatten(1).sum(1)
            for phi in components
        )
        assert torch.allclose(g[(slice(None), *q)], moved / v, atol=1e-12)


def test_displacements_along_an_axis_and_the_connected_part():
    x = 3.0 + normal(4, 3, 4, 2)
    g = lattice.two_point(x, (3, 4), 2)
    assert torch.equal(lattice.two_point(x, (3, 4), 2, axis=0), g[:, :, 0])
    assert torch.equal(lattice.two_point(x, (3, 4), 2, axis=1), g[:, 0, :])
    assert torch.equal(lattice.two_point(x, (3, 4), 2, axis=-1), g[:, 0, :])
    cube = normal(2, 2, 3, 4)
    g3 = lattice.two_point(cube, (2, 3, 4))
    assert torch.equal(lattice.two_point(cube, (2, 3, 4), axis=1), g3[:, 0, :, 0])
    mean = x.mean((0, 1, 2))
    connected = lattice.two_point(x, (3, 4), 2, connected=True)
    assert torch.allclose(connected, g - mean.square().sum(), atol=1e-12)
    assert float(g.mean()) > 17 and abs(float(connected.mean())) < 1.0
    one = lattice.two_point(normal(6), (6,))  # no leading axis
    assert one.shape == (6,)


def free_field(shape: tuple[int, int], mass2: float, count: int) -> Tensor:
    """Draws of exp(−½ φ (−Δ + m²) φ) from the Cholesky factor of the dense precision matrix."""
    v = math.prod(shape)
    precision = torch.zeros(v, v, dtype=torch.float64)
    index = torch.arange(v).reshape(shape)
    for axis, by in itertools.product((0, 1), (-1, 1)):
        near = index.roll(by, axis).flatten()
        precision[torch.arange(v), torch.arange(v)] += 1.0
        precision[torch.arange(v), near] -= 1.0
    precision += mass2 * torch.eye(v, dtype=torch.float64)
    factor = torch.linalg.cholesky(precision)
    x = torch.linalg.solve_triangular(factor.T, normal(v, count), upper=True)
    return x.T.reshape(count, *shape)


def test_free_field_has_its_propagator_and_its_length_is_one_over_the_mass():
    shape, mass2, count = (6, 6), 0.4, 20_000
    x = free_field(shape, mass2, count)
    s = lattice.structure_factor(x, shape)
    k = [4 * torch.sin(math.pi * torch.arange(length) / length) ** 2 for length in shape]
    exact = 1 / (k[0][:, None] + k[1] + mass2)
    error = s.std(0) / math.sqrt(count)
    assert float(((s.mean(0) - exact) / error).abs().max()) < 5
    exact_length = lattice.second_moment_length(exact, shape)
    assert float(exact_length) == pytest.approx(1 / math.sqrt(mass2), rel=1e-6)
    for axis in (None, 0, 1):
        found = lattice.second_moment_length(s.mean(0), shape, axis)
        # dξ/ξ = ½ d(S₀/S₁)/(S₀/S₁ − 1), both parts of relative error about √(2/count)
        ratio = float(exact[0, 0] / exact[1, 0])
        spread = 0.5 * ratio / (ratio - 1) * 2 * math.sqrt(2 / count)
        assert float(found) == pytest.approx(1 / math.sqrt(mass2), rel=5 * spread)
    g = lattice.two_point(x, shape).mean(0)
    assert float(g[0, 0]) == pytest.approx(float(exact.mean()), rel=0.02)


def test_length_names_what_it_lacks():
    s = torch.rand(3, 4, 6, dtype=torch.float64) + 1
    s[:, 0, 0] = 9.0
    lengths = [lattice.second_moment_length(s, (4, 6), axis) for axis in (0, 1)]
    expected = (9 / s[:, 1, 0] - 1).sqrt() / (2 * math.sin(math.pi / 4))
    assert torch.allclose(lengths[0], expected)
    expected = (9 / s[:, 0, 1] - 1).sqrt() / (2 * math.sin(math.pi / 6))
    assert torch.allclose(lengths[1], expected)
    with pytest.raises(ValueError, match=r"axis must be given for the unequal extents \(4, 6\)"):
        lattice.second_moment_length(s, (4, 6))
    with pytest.raises(ValueError, match="axis must lie in 0…1, got 2"):
        lattice.second_moment_length(s, (4, 6), 2)
    with pytest.raises(ValueError, match="structure must be"):
        lattice.second_moment_length(s, (6, 4))
    s[:, 0, 0] = 0.1
    assert bool(lattice.second_moment_length(s, (4, 6), 0).isnan().all())


def test_cumulant_of_order_and_of_a_gaussian():
    assert float(lattice.binder(torch.tensor(0.81), torch.tensor(0.81**2))) == pytest.approx(2 / 3)
    m = normal(400_000)
    u = float(lattice.binder(m.square().mean(), m.pow(4).mean()))
    # δU = −(δm⁴ − 6 δm²)/3 for unit variance, of variance (96 − 144 + 72)/9 a draw
    assert abs(u) < 5 * math.sqrt(24 / 400_000) / 3


@pytest.mark.parametrize(
    ("x", "shape", "n"),
    [
        (torch.zeros(2, 3, 4), (4, 3), None),
        (torch.zeros(2, 3, 4), (3, 4), 2),
        (torch.zeros(3), (3, 4), None),
        (torch.zeros(2, 2, 2, 2), (2, 2, 2, 2), None),
    ],
)
def test_other_shapes_are_refused(x, shape, n):
    with pytest.raises(ValueError, match=r"x must have shape \(…, .* of 1 to 3 extents, got"):
        lattice.structure_factor(x, shape, n)


# ------------------------------------------------------------------------- XY spins
def test_stiffness_of_order_of_a_twist_and_of_the_sum():
    shape, beta = (6, 6), 0.7
    assert float(lattice.helicity(torch.full(shape, 0.3), shape, beta)) == pytest.approx(1.0)
    turn = (2 * math.pi * torch.arange(6) / 6)[:, None].expand(6, 6)  # once around axis 0
    expected = 0.5 * (math.cos(math.pi / 3) + 1) - beta / 72 * (36 * math.sin(math.pi / 3)) ** 2
    assert float(lattice.helicity(turn, shape, beta)) == pytest.approx(expected)
    theta = angles(3, 4, 5)
    brute = torch.zeros(3, dtype=torch.float64)
    for axis in (1, 2):
        step = theta.roll(-1, axis) - theta
        brute += step.cos().sum((1, 2)) - beta * step.sin().sum((1, 2)).square()
    for x, n in ((theta, None), (vectors(theta), 2)):
        assert torch.allclose(lattice.helicity(x, (4, 5), beta, n), brute / 40)
    with pytest.raises(ValueError, match="n must be None for angles or 2 for vectors, got 3"):
        lattice.helicity(torch.zeros(4, 5, 3), (4, 5), beta, 3)


def test_a_vortex_and_its_partner_are_found_where_they_stand():
    shape = (24, 24)
    a, b = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")

    def around(row: float, column: float) -> Tensor:
        return torch.atan2(b - column, a - row)

    pair = around(9.5, 11.5) - around(13.5, 12.5)
    for x, n in ((pair, None), (vectors(pair), 2)):
        charge = lattice.vortices(x, shape, n).reshape(shape)
        assert charge.dtype == torch.int64
        assert int(charge[9, 11]) == 1 and int(charge[13, 12]) == -1
        assert int(charge.abs().sum()) == 2
        assert float(lattice.vortex_density(x, shape, n)) == pytest.approx(2 / 576)
    assert not lattice.vortices(torch.full((7, 5), 2.0), (7, 5)).any()


def test_spins_at_random_have_a_vortex_on_every_third_plaquette():
    """Four independent angles wind around with probability 1/3; on a torus the charges add up to 0."""
    count, shape = 400, (10, 14)
    theta = angles(count, *shape)
    charge = lattice.vortices(theta, shape)
    assert charge.shape == (count, 140)
    assert torch.equal(charge, lattice.vortices(vectors(theta), shape, 2))
    assert set(charge.unique().tolist()) == {-1, 0, 1}
    assert not charge.sum(1).any()
    density = lattice.vortex_density(theta, shape)
    error = float(density.std()) / math.sqrt(count)
    assert abs(float(density.mean()) - 1 / 3) < 5 * error < 0.02


def test_vortex_lines_end_nowhere():
    """In three dimensions as many lines enter a cube as leave it."""
    shape = (4, 5, 6)
    charge = lattice.vortices(angles(30, *shape, seed=2), shape).reshape(30, 3, *shape)
    yz, xz, xy = charge[:, 2], charge[:, 1], charge[:, 0]
    divergence = (yz.roll(-1, 1) - yz) - (xz.roll(-1, 2) - xz) + (xy.roll(-1, 3) - xy)
    assert not divergence.any()
    assert charge.abs().sum() > 1000
    with pytest.raises(ValueError, match="2 or 3 extents"):
        lattice.vortices(angles(4, 8), (8,))


def test_opposite_spins_make_no_double_charge():
    theta = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * math.pi
    for x, n in ((theta, None), (vectors(theta), 2)):
        charge = lattice.vortices(x, (4, 4), n)
        assert int(charge.abs().max()) <= 1 and int(charge.sum()) == 0


# ------------------------------------------------------------------------- finite-size scaling
def test_crossing_of_straight_lines_is_exact_and_its_error_that_of_the_delta_method():
    x = torch.linspace(0.5, 1.0, 6)
    a, b = 1 + 2 * x, 3 - x  # at x = 2/3, y = 7/3
    sigma = torch.full((6,), 0.02)
    found = lattice.crossing(x, a, b, (sigma, 2 * sigma), degree=1, n_resamples=2000)
    assert found.x == pytest.approx(2 / 3, rel=1e-6)
    assert found.y == pytest.approx(7 / 3, rel=1e-6)
    # variance of a straight line at u: σ²(1/k + (u − ū)²/Σ(x − x̄)²), of both, over the slope 3
    spread = 1 / 6 + (2 / 3 - 0.75) ** 2 / float((x - 0.75).square().sum())
    expected = 0.02 * math.sqrt(5 * spread) / 3
    assert found.x_error == pytest.approx(expected, rel=5 / math.sqrt(2 * 2000))
    assert 0 < found.y_error < 0.05
    assert found.chi2_per_dof < 1e-6 and found.lost == 0
    again = lattice.crossing(x, a, b, (sigma, 2 * sigma), degree=1, n_resamples=2000)
    other = lattice.crossing(x, a, b, (sigma, 2 * sigma), degree=1, n_resamples=2000, seed=1)
    assert found == again != other


def test_crossing_of_noisy_curves_is_found_within_its_error():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    sigma = torch.full((9,), 0.01, dtype=torch.float64)
    pulls, chi2 = [], []
    for seed in range(40):
        noise = 0.01 * normal(2, 9, seed=seed)
        a = 0.4 + 0.1 * (x - 0.2) + 0.05 * (x - 0.2) ** 2 + noise[0]
        b = 0.4 + 0.3 * (x - 0.2) - 0.05 * (x - 0.2) ** 2 + noise[1]
        found = lattice.crossing(x, a, b, (sigma, sigma), n_resamples=100)
        pulls.append((found.x - 0.2) / found.x_error)
        chi2.append(found.chi2_per_dof)
    pull = torch.tensor(pulls)
    assert abs(float(pull.mean())) < 5 / math.sqrt(40)
    assert float(pull.std()) == pytest.approx(1.0, abs=5 / math.sqrt(2 * 40) + 0.1)
    assert abs(sum(chi2) / 40 - 1) < 5 * math.sqrt(2 / (12 * 40))


def test_crossing_that_is_not_there_is_an_error():
    x = torch.linspace(0, 1, 5)
    sigma = torch.full((5,), 0.1)
    with pytest.raises(ValueError, match=r"curves do not cross between x = 0\.0 and 1\.0"):
        lattice.crossing(x, x, x + 1, (sigma, sigma))
    with pytest.raises(ValueError, match="errors must be positive and x must increase"):
        lattice.crossing(x, x, 1 - x, (sigma, 0 * sigma))
    with pytest.raises(ValueError, match="with k > degree = 5"):
        lattice.crossing(x, x, 1 - x, (sigma, sigma), degree=5)
    with pytest.raises(ValueError, match="must be finite"):
        lattice.crossing(x, x / 0, 1 - x, (sigma, sigma))
    vague = lattice.crossing(x, x, 1 - x, (20 * sigma, 20 * sigma))  # noise drowns the slopes
    assert vague.lost > 0.05 and math.isnan(vague.x_error)


def scaling_data(sigma: float, nu: float = 1.0, kappa: float = 0.125) -> tuple[Tensor, ...]:
    sizes = torch.tensor([8.0, 16.0, 32.0], dtype=torch.float64)
    x = torch.linspace(2.1, 2.5, 25, dtype=torch.float64).repeat(3, 1)
    u = (x - 2.27) * sizes[:, None] ** (1 / nu)
    clean = sizes[:, None] ** (-kappa / nu) / (1 + torch.exp(u))
    error = sigma * sizes[:, None] ** (-kappa / nu) * torch.ones_like(x)
    return sizes, x, clean + error * normal(3, 25), error


def test_collapse_is_one_only_for_the_right_exponents():
    sizes, x, y, error = scaling_data(0.01)
    list_of_sizes = [int(size) for size in sizes]

    def quality(x_c: float, nu: float, kappa: float) -> float:
        how = {"x_c": x_c, "nu": nu, "kappa": kappa}
        u, scaled = lattice.collapse(list_of_sizes, x, y, **how)
        _, spread = lattice.collapse(list_of_sizes, x, error, **how)
        return lattice.collapse_quality(u, scaled, spread)

    right = quality(2.27, 1.0, 0.125)
    # 1 up to the curvature of the curve between neighbours, for about 60 points
    assert abs(right - 1) < 5 * math.sqrt(2 / 60)
    assert quality(2.27, 1.0, 0.0) > 3 * right
    assert quality(2.27, 1.6, 0.125) > 3 * right
    assert quality(2.30, 1.0, 0.125) > 3 * right
    u, scaled = lattice.collapse([2, 4], torch.tensor([[1.0], [1.0]]), torch.ones(2, 1), x_c=0.5,
                                 nu=0.5, kappa=-1.0)  # fmt: skip
    assert torch.allclose(u, torch.tensor([[2.0], [8.0]], dtype=torch.float64))
    assert torch.allclose(scaled, torch.tensor([[0.25], [1 / 16]], dtype=torch.float64))


def test_quality_of_one_point_between_two_is_its_formula():
    u = torch.tensor([[0.0, 1.0], [0.25, 3.0]], dtype=torch.float64)
    y = torch.tensor([[0.0, 2.0], [1.0, 5.0]], dtype=torch.float64)
    error = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    # (0.25, 1) against the line 0.5 ± √((¾·0.1)² + (¼·0.2)²); (1, 2) against 1 + 4·0.75/2.75
    first = 0.25 / (0.09 + 0.075**2 + 0.05**2)
    t = 0.75 / 2.75
    second = (2 - (1 + 4 * t)) ** 2 / (0.04 + ((1 - t) * 0.3) ** 2 + (t * 0.4) ** 2)
    assert lattice.collapse_quality(u, y, error) == pytest.approx((first + second) / 2)
    apart = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert math.isnan(lattice.collapse_quality(apart, y, error))


def test_figure_of_scaling_has_all_curves_and_the_crossing(tmp_path):
    sizes, x, y, error = scaling_data(0.01, kappa=0.0)
    near = slice(6, 16)
    x, y, error = x[:, near], y[:, near], error[:, near]
    found = lattice.crossing(x[0], y[1], y[2], (error[1], error[2]), degree=3)
    assert abs(found.x - 2.27) < 5 * found.x_error < 0.02
    curves = ([int(size) for size in sizes], x, y, error)
    with_crossing, without = tmp_path / "with.png", tmp_path / "without.png"
    lattice_plots.plot_scaling(*curves, with_crossing, x_c=2.27, nu=1.0, crossing=found)
    lattice_plots.plot_scaling(*curves, without, x_c=2.27, nu=1.0)
    shares = []
    for path in (with_crossing, without):
        image = imread(path)[..., :3]
        assert image.shape[0] > 400 and image.shape[1] > 900
        for shade in (matplotlib.colormaps["viridis"](u)[:3] for u in (0.0, 0.425, 0.85)):
            assert float((abs(image - shade).max(-1) < 0.02).mean()) > 1e-3
        shares.append(float((image.max(-1) < 0.01).mean()))
    assert shares[0] > 1.02 * shares[1]  # the crossing is black
    with pytest.raises(ValueError, match="path must end in one of"):
        lattice_plots.plot_scaling(*curves, tmp_path / "x.nonsense", x_c=2.27, nu=1.0)


def test_bad_scaling_is_named():
    y = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"nu must be positive and finite, got 0\.0"):
        lattice.collapse([4, 8], y, y, x_c=0.0, nu=0.0)
    with pytest.raises(ValueError, match=r"y must be \(sizes, k\) for 3 positive sizes"):
        lattice.collapse([4, 8, 16], y, y, x_c=0.0, nu=1.0)
    with pytest.raises(ValueError, match="u must increase along each curve"):
        lattice.collapse_quality(y, y, y)
    with pytest.raises(ValueError, match=r"must all be \(sizes, k\)"):
        lattice.collapse_quality(y, y, y[0])
