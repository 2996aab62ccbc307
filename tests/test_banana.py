"""The banana, four modes, and flows in closed form: densities against Jacobians, moments, acceptance."""

import math

import pytest
import torch

from pysamp import metrics
from pysamp.check import check_target
from pysamp.nets import Normal, check_invertible
from pysamp.nets.analytic import FunnelFlow, LinearFlow
from pysamp.target import HasModes, HasMoments, HasNative, HasSampler, log_prob_and_score
from pysamp.targets import Banana, FourModes, Funnel, Gaussian


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def within_five_sigma(values, expected):
    error = values.std(0) / math.sqrt(len(values))
    assert bool((error > 0).all())
    assert bool(((values.mean(0) - expected).abs() < 5 * error).all())


def density_by_jacobian(f, z):
    """log N(z; 0, 1) − log|det df/dz| row by row, with the Jacobian by autograd."""
    found = []
    for row in z:
        jacobian = torch.autograd.functional.jacobian(f, row)
        normal = -0.5 * float(row @ row) - len(row) / 2 * math.log(2 * math.pi)
        found.append(normal - float(torch.linalg.slogdet(jacobian).logabsdet))
    return torch.tensor(found, dtype=torch.float64)


# ---------------------------------------------------------------------------- banana
@pytest.mark.parametrize("shape", [(1, 4), (2,), (3, 1), (1, 2, 2)])
def test_banana_refuses_points_of_another_shape(shape):
    for f in (Banana(2).log_prob, Banana(2).score):
        with pytest.raises(ValueError) as caught:
            f(torch.zeros(shape))
        assert str(caught.value) == f"x must have shape (n, 2), got {shape}"


def bend(z, scale=10.0, factor=0.02):
    x = []
    for k in range(0, len(z), 2):
        wide = scale * z[k]
        x += [wide, z[k + 1] + factor * wide**2 - factor * scale**2]
    return torch.stack(x)


@pytest.mark.parametrize("scale, factor", [(10.0, 0.02), (2.0, -0.7)])
def test_banana_density_is_that_of_its_map(scale, factor):
    """Check 13 of the specification."""
    target = Banana(6, scale, factor)
    z = noise(5, 6)
    x = torch.stack([bend(row, scale, factor) for row in z])
    expected = density_by_jacobian(lambda row: bend(row, scale, factor), z)
    torch.testing.assert_close(target.log_prob(x), expected, rtol=1e-8, atol=1e-8)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(target.log_prob(leaf).sum(), leaf)
    value, score = log_prob_and_score(target, x)
    torch.testing.assert_close(score, slope, rtol=1e-12, atol=1e-12)
    assert torch.equal(value, target.log_prob(x))
    check_target(target)


def test_banana_moments_are_those_of_the_draws():
    target = Banana(4)
    assert target.covariance.diagonal().tolist() == [100.0, 9.0, 100.0, 9.0]
    assert isinstance(target, HasMoments) and isinstance(target, HasSampler)
    x = target.sample(40_000, seed=1, dtype=torch.float64)
    within_five_sigma(x, target.mean)
    product = x[:, :, None] * x[:, None, :]
    within_five_sigma(product, target.covariance)
    # Third moments tell the parabola from a Gaussian: E x_0² x_1 = bend (E x_0⁴ − scale⁴ …) = 2 b s⁴.
    within_five_sigma(x[:, 0] ** 2 * x[:, 1], 2 * 0.02 * 10.0**4)
    parts = [target.sample(m, seed=1, first_chain=f) for f, m in ((0, 7), (7, 3))]
    assert torch.equal(target.sample(10, seed=1), torch.cat(parts))


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((3,), "dim"),
        ((0,), "dim"),
        ((2.0,), "dim"),
        ((2, 0.0), "scale"),
        ((2, 1.0, math.inf), "bend"),
    ],
)
def test_banana_refuses_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must"):
        Banana(*arguments)


# ---------------------------------------------------------------------------- four modes
@pytest.mark.parametrize(
    "dim, a", [(16, 1.3917), (32, 1.5560), (64, 1.7045), (128, 1.8410), (256, 1.9682)]
)
def test_four_modes_are_the_published_ones(dim, a):
    target = FourModes(dim)
    half = dim // 2
    means = target.means / a
    for k, (first, second) in enumerate([(-1, 1), (1, 1), (-1, -1), (1, -1)]):
        signs = torch.tensor([first] * half + [second] * half, dtype=torch.float64)
        torch.testing.assert_close(means[k], signs, rtol=0, atol=5e-5)
    torch.testing.assert_close(
        target.covariance.diagonal(),
        torch.full((dim,), 1 + a * a, dtype=torch.float64),
        rtol=2e-4,
        atol=0,
    )
    assert target.mode_weights.tolist() == [0.25] * 4 and isinstance(target, HasNative)
    assert isinstance(target, HasModes) and float(target.mean.abs().max()) < 1e-12


def test_draws_of_four_modes():
    target = FourModes(8, a=3.0)
    x = target.sample(8000, seed=2, dtype=torch.float64)
    label = target.mode(x)
    for k in range(4):
        within_five_sigma((label == k).double(), 0.25)
        within_five_sigma(x[label == k], target.means[k])
    check_target(target)
    for bad in (3, 0, 4.0):
        with pytest.raises(ValueError, match="dim must be an even int"):
            FourModes(bad)


# ---------------------------------------------------------------------------- flows
def test_a_linear_flow_is_a_gaussian():
    matrix, shift = noise(5, 5, seed=3), noise(5, seed=4)
    flow = LinearFlow(matrix, shift).double()
    known = Gaussian(shift, matrix @ matrix.T)
    x = flow.sample(30_000, seed=1)
    assert x.dtype == torch.float64
    torch.testing.assert_close(flow.log_prob(x), known.log_prob(x), rtol=1e-9, atol=1e-9)
    within_five_sigma(x, shift)
    offset = x - shift
    within_five_sigma(offset[:, :, None] * offset[:, None, :], matrix @ matrix.T)
    check_invertible(flow, x[:50])
    again, log_q = flow.push(flow.inverse(x)[0])
    torch.testing.assert_close(again, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_q, flow.log_prob(x), rtol=1e-9, atol=1e-9)
    # In float32 by default, exact constants rounded only then; another base moves with the map.
    assert LinearFlow(matrix).sample(3, seed=1).dtype == torch.float32
    wide = LinearFlow(matrix, base=Normal(mean=torch.zeros(5), covariance=4.0)).double()
    other = Gaussian(torch.zeros(5), 4 * matrix @ matrix.T)
    torch.testing.assert_close(wide.log_prob(x), other.log_prob(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.3, 4.0])
def test_the_funnel_flow_is_the_funnel_with_a_wrong_width(beta):
    flow = FunnelFlow(5, beta).double()
    z = noise(6, 5, seed=5)
    x, log_q = flow.push(z)
    expected = density_by_jacobian(lambda row: flow.forward(row[None])[0][0], z)
    torch.testing.assert_close(log_q, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-8, atol=1e-8)
    check_invertible(flow, x)
    stretched = torch.cat([x[:, :1], math.sqrt(beta) * x[:, 1:]], 1)
    funnel = Funnel(5).log_prob(stretched) + 2 * math.log(beta)
    torch.testing.assert_close(flow.log_prob(x), funnel, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "dim, beta, accept", [(16, 2.0, 0.19106), (16, 1.5, 0.44152), (64, 1.2, 0.47140)]
)
def test_acceptance_of_the_funnel_flow_is_known(dim, beta, accept):
    """Check 4 of the specification, by independent pairs."""
    target, flow, n = Funnel(dim), FunnelFlow(dim, beta).double(), 40_000
    x = target.sample(n, seed=1, dtype=torch.float64)
    y, log_q = flow.sample_and_log_prob(n, seed=2)
    value, error = metrics.independent_accept(
        target.log_prob(x) - flow.log_prob(x), target.log_prob(y) - log_q
    )
    assert abs(float(value) - accept) < 5 * float(error) < 0.015


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LinearFlow(torch.ones(2, 3)), "matrix must be"),
        (lambda: LinearFlow(torch.ones(2, 2)), "invertible"),
        (lambda: LinearFlow(torch.eye(2) * math.nan), "matrix must be finite"),
        (lambda: LinearFlow(torch.eye(2), torch.zeros(3)), "shift must be"),
        (lambda: FunnelFlow(1), "dim must be"),
        (lambda: FunnelFlow(3, beta=0.0), "beta must be"),
        (lambda: FunnelFlow(3, variance=math.inf), "variance must be"),
    ],
)
def test_bad_flows_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
