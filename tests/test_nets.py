"""Flows: inverses, log-determinants, gradients, normalisation; splines and bases against closed forms."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pysamp import nets
from pysamp.capabilities import Proposal
from pysamp.nets.mlp import MLP
from pysamp.nets.spline import LEAST, rational_quadratic

PI = math.pi
CIRCULAR = (0, 3, 4)


def mixed_base(dim: int = 6) -> nets.Product:
    rest = dim - len(CIRCULAR)
    normal = nets.Normal(mean=torch.linspace(-0.3, 0.4, rest), covariance=0.7)
    return nets.Product(normal, nets.Torus(len(CIRCULAR)), CIRCULAR)


def affine_stack(dim: int = 6) -> nets.Compose:
    half = list(range(dim // 2))
    return nets.Compose(
        nets.AffineCoupling(dim, half, 16, init_scale=1.0, seed=1, index=0),
        nets.Permutation.random(dim, seed=3),
        nets.AffineCoupling(dim, half, 16, 4, init_scale=1.0, seed=1, index=1),
        nets.InvertibleLinear(dim, "lu", seed=5),
        nets.AffineCoupling(dim, half, 16, init_scale=1.0, seed=1, index=2),
        nets.InvertibleLinear(dim, "orthogonal", seed=6),
        event_shape=dim,
    )


def zuko_flow(name: str, **settings) -> nets.Flow:
    zuko = pytest.importorskip("zuko")
    state = torch.get_rng_state()
    torch.manual_seed(0)
    flow = getattr(zuko.flows, name)(6, **settings)
    torch.set_rng_state(state)
    return nets.as_flow(flow)


FLOWS = {  # far from the identity, so that no error hides
    "realnvp": lambda: nets.RealNVP(6, 3, 16, init_scale=1.0, seed=1),
    "realnvp joint": lambda: nets.RealNVP(
        (2, 3), 2, 16, 4, mask="alternate", conditioner="joint", init_scale=1.0,
        base=nets.Normal(mean=torch.arange(6.0), covariance=torch.arange(1.0, 7.0)),
    ),
    "affine": affine_stack,
    "spline": lambda: nets.SplineFlow((3, 2), 4, 16, n_bins=5, bound=3.0, init_scale=0.15),
    "circular": lambda: nets.CircularSplineFlow(6, 4, 16, n_bins=5, init_scale=0.15),
    "mixed": lambda: nets.CircularSplineFlow(
        6, 4, 16, n_bins=4, init_scale=0.15, circular=CIRCULAR, base=mixed_base()
    ),
    "zuko maf": lambda: zuko_flow("MAF", transforms=2, hidden_features=(16,)),
    "zuko nsf": lambda: zuko_flow("NSF", transforms=2, hidden_features=(16,)),
}  # fmt: skip


@pytest.fixture(params=FLOWS)
def flow(request) -> nets.Flow:
    flow = FLOWS[request.param]().double()
    for parameter in flow.parameters():  # zero biases and unit triangles would hide errors
        parameter.data += 0.03 * noise(tuple(parameter.shape), seed=parameter.numel())
    return flow


def noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------ every flow
@pytest.mark.parametrize("precision, bound", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_inverse_inverts(flow, precision, bound):
    flow = flow.to(precision)
    z = flow.base.draw(500, seed=3, dtype=precision)
    with torch.no_grad():
        x, log_det = flow.forward(z)
        back, inverse_log_det = flow.inverse(x)
    assert x.shape == (500, *flow.event_shape) and log_det.shape == (500,)
    moved = (x.flatten(1) - z).abs().mean()
    assert moved > 0.05, "the flow is the identity: this would test nothing"
    torch.testing.assert_close(back, z, rtol=0, atol=bound)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=10 * bound)
    nets.check_invertible(flow, x)


def test_log_det_is_that_of_the_jacobian(flow):
    z = flow.base.draw(8, seed=5, dtype=torch.float64).requires_grad_(True)
    x, log_det = flow.forward(z)
    points = x.detach().requires_grad_(True)
    back, inverse_log_det = flow.inverse(points)
    for start, end, found in ((z, x, log_det), (points, back, inverse_log_det)):
        rows = [  # rows are independent: the sum over them gives one row of each Jacobian
            torch.autograd.grad(coordinate.sum(), start, retain_graph=True)[0].flatten(1)
            for coordinate in end.flatten(1).unbind(1)
        ]
        expected = torch.linalg.slogdet(torch.stack(rows, 1))[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_of_points(flow, direction):
    z = flow.base.draw(2, seed=7, dtype=torch.float64)
    start = z if direction == "forward" else flow.forward(z)[0].detach()
    start.requires_grad_(True)
    assert torch.autograd.gradcheck(getattr(flow, direction), (start,), fast_mode=True)


@pytest.mark.parametrize("direction", ["push", "log_prob"])
def test_gradients_of_parameters(flow, direction):
    """Every parameter acts, and its gradient is the slope of a central difference."""
    z = flow.base.draw(64, seed=9, dtype=torch.float64)
    x = flow.forward(z)[0].detach()

    def loss() -> torch.Tensor:
        if direction == "log_prob":
            return flow.log_prob(x).mean()
        points, log_q = flow.push(z)
        return (points.sin() * torch.arange(1.0, 7.0).reshape(flow.event_shape)).sum() + log_q.sum()

    parameters = list(flow.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    assert all(bool((gradient != 0).any()) for gradient in gradients)
    directions = [noise(tuple(p.shape), seed=k) for k, p in enumerate(parameters)]
    slope = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True))
    step, values = 1e-6, []
    for sign in (1, -1):
        for parameter, v in zip(parameters, directions, strict=True):
            parameter.data += sign * step * v
        with torch.no_grad():
            values.append(float(loss()))
        for parameter, v in zip(parameters, directions, strict=True):
            parameter.data -= sign * step * v
    # rounding of the values is worth 1e-16 |loss| / step, kinks of rectified units a little more
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_density_of_draws_is_the_density(flow):
    assert isinstance(flow, Proposal)
    x, log_q = flow.sample_and_log_prob(200, seed=11)
    assert not x.requires_grad and not log_q.requires_grad
    torch.testing.assert_close(log_q, flow.log_prob(x).detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(flow.sample(200, seed=11), x)
    assert float(log_q.std()) > 0.05
    z = flow.base.draw(200, seed=11, dtype=torch.float64)
    torch.testing.assert_close(flow.push(z)[1].detach(), log_q)


def test_a_batch_may_be_split(flow):
    whole = flow.sample(9, seed=2, step=4, first_chain=5)
    parts = [flow.sample(n, seed=2, step=4, first_chain=c) for n, c in ((2, 5), (3, 7), (4, 10))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    for other in ({"seed": 3}, {"step": 5}, {"first_chain": 6}):
        arguments = {"seed": 2, "step": 4, "first_chain": 5} | other
        assert not torch.allclose(flow.sample(9, **arguments)[0], whole[0])


@torch.no_grad()
def test_a_copy_is_the_same_flow(flow):
    x = flow.sample(5, seed=1)
    other = copy.deepcopy(flow)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    for parameter in other.parameters():
        parameter.data.zero_()
    assert not torch.equal(other.log_prob(x), flow.log_prob(x))
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other.log_prob(x), flow.log_prob(x))


def test_no_hidden_random_numbers():
    state = torch.get_rng_state()
    for name in ("realnvp", "affine", "spline", "circular", "mixed"):
        first, second = (FLOWS[name]() for _ in range(2))
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_protocols_hold_statically():
    """From Python 3.12 on isinstance looks at attributes as getattr_static does: no buffers, no modules."""
    for base in (nets.Normal(2), nets.Torus(2), mixed_base()):
        for name in ("dim", "standard", "draw", "place", "log_prob"):
            inspect.getattr_static(base, name)
    for name in ("event_shape", "log_prob", "sample"):
        inspect.getattr_static(nets.SplineFlow(2), name)


# ------------------------------------------------------------------------------------ normalisation
@pytest.mark.parametrize("kind", ["spline", "circular", "affine"])
def test_the_density_integrates_to_one_and_is_that_of_the_draws(kind):
    """A sum over a grid in two dimensions, and the means of draws against means over the grid."""
    if kind == "circular":
        flow = nets.CircularSplineFlow(2, 4, 16, n_bins=4, init_scale=0.5, seed=2).double()
        edge = PI
    elif kind == "spline":
        flow = nets.SplineFlow(2, 4, 16, n_bins=4, init_scale=0.15, seed=2).double()
        edge = 8.0
    else:
        flow, edge = affine_stack(2).double(), 30.0
    n = 300
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * edge / n) - edge
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = flow.log_prob(grid).exp() * (2 * edge / n) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=2e-3)
    x = flow.sample(20_000, seed=3)
    for function in (torch.sin, torch.cos, lambda t: torch.sin(2 * t + 0.3)):
        values = function(x)
        error = 5 * values.std(0) / math.sqrt(len(x)) + 2e-3  # 5 standard errors, and the grid
        expected = (p[:, None] * function(grid)).sum(0)
        assert bool(((values.mean(0) - expected).abs() < error).all())


# ------------------------------------------------------------------------------------ bases
def matrix(d: int = 4) -> torch.Tensor:
    a = noise((d, d), seed=d)
    return a @ a.T + 0.5 * torch.eye(d, dtype=torch.float64)


NORMALS = {
    "standard": (lambda: nets.Normal(4), torch.zeros(4), torch.eye(4)),
    "one variance": (lambda: nets.Normal(4, covariance=2.5), torch.zeros(4), 2.5 * torch.eye(4)),
    "variances": (
        lambda: nets.Normal(mean=[1, 2, 3, 4], covariance=[1.0, 0.5, 2.0, 3.0]),
        torch.arange(1.0, 5.0), torch.diag(torch.tensor([1.0, 0.5, 2.0, 3.0])),
    ),
    "matrix": (
        lambda: nets.Normal(mean=torch.arange(4), covariance=matrix()),
        torch.arange(4.0), matrix(),
    ),
    "precision": (
        lambda: nets.Normal.from_precision(matrix(), mean=torch.ones(4)),
        torch.ones(4), torch.linalg.inv(matrix()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALS)
def test_normal_base(name):
    build, mean, covariance = NORMALS[name]
    base = build()
    expected = MultivariateNormal(mean.double(), covariance.double())
    assert base.standard == (name == "standard")
    n = 40_000
    z = base.draw(n, seed=7, dtype=torch.float64)
    assert z.shape == (n, base.dim)
    torch.testing.assert_close(base.log_prob(z), expected.log_prob(z), rtol=1e-11, atol=1e-11)
    # 5 standard errors of a mean, and of a product of two normal numbers
    white = torch.linalg.solve_triangular(expected.scale_tril, (z - expected.loc).T, upper=False)
    assert bool((white.mean(1).abs() < 5 / math.sqrt(n)).all())
    off = (white @ white.T / n - torch.eye(4, dtype=torch.float64)).abs()
    assert bool((off < 5 * math.sqrt(2 / n)).all())
    # the noise it is made of
    xi = nets.Normal(4).draw(n, seed=7, dtype=torch.float64)
    torch.testing.assert_close(base.place(xi), z)
    # in single precision, of the same constants
    torch.testing.assert_close(
        base.log_prob(z.float()), expected.log_prob(z).float(), rtol=1e-5, atol=1e-4
    )


def test_coupled_base_of_a_chain():
    """Precision of §6.7: draws of the free field have its correlations."""
    n_sites, c, beta = 16, 1.6, 20.0
    off = torch.diag(torch.ones(n_sites - 1), 1).double()
    precision = beta * ((2 * c + 1 / c) * torch.eye(n_sites).double() - c * (off + off.T))
    base = nets.Normal.from_precision(precision)
    z = base.draw(20_000, seed=1, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    for i, j in ((0, 0), (7, 7), (7, 8), (3, 6)):
        product = z[:, i] * z[:, j]
        error = 5 * float(product.std()) / math.sqrt(len(z))
        assert float(product.mean()) == pytest.approx(float(covariance[i, j]), abs=error)
    quadratic = -0.5 * ((z @ precision) * z).sum(1)
    constant = base.log_prob(z) - quadratic
    expected = 0.5 * float(torch.logdet(precision)) - 8 * math.log(2 * PI)
    torch.testing.assert_close(constant, torch.full_like(constant, expected))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_torus_and_product(precision):
    torus = nets.Torus(3)
    z = torus.draw(20_000, seed=3, dtype=precision)
    assert z.dtype == precision and float(z.abs().max()) <= PI
    assert bool((z.amin(0) < -3.14).all() and (z.amax(0) > 3.14).all())
    for k in (1, 2):
        assert bool((torch.cos(k * z).mean(0).abs() < 5 * math.sqrt(0.5 / len(z))).all())
    torch.testing.assert_close(
        torus.log_prob(z), torch.full((len(z),), -3 * math.log(2 * PI), dtype=precision)
    )
    product = mixed_base()
    z = product.draw(20_000, seed=3, dtype=precision)
    rest = [i for i in range(6) if i not in CIRCULAR]
    expected = MultivariateNormal(
        torch.linspace(-0.3, 0.4, 3).to(precision), 0.7 * torch.eye(3).to(precision)
    )
    torch.testing.assert_close(
        product.log_prob(z),
        expected.log_prob(z[:, rest]) - 3 * math.log(2 * PI),
        rtol=1e-5,
        atol=1e-5,
    )
    assert float(z[:, CIRCULAR].abs().max()) <= PI
    # Normals and angles share no random bits: no function of one predicts one of the other.
    angles, normals = z[:, CIRCULAR], z[:, rest] - expected.loc
    for f in (torch.cos, torch.sin, lambda t: t / PI):
        for g in (lambda t: t, torch.square, lambda t: t.abs().log()):
            a, b = f(angles), g(normals)
            a, b = (a - a.mean(0)) / a.std(0), (b - b.mean(0)) / b.std(0)
            assert float((a.T @ b / len(z)).abs().max()) < 5 / math.sqrt(len(z))


def test_draws_of_bases_belong_to_chains():
    for base in (nets.Normal(5), nets.Torus(5), mixed_base()):
        whole = base.draw(8, seed=1, step=2, substep=3)
        parts = (
            base.draw(3, seed=1, step=2, substep=3),
            base.draw(5, seed=1, step=2, substep=3, first_chain=3),
        )
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(base.draw(8, seed=1, step=2, substep=4), whole)
        assert not torch.equal(base.draw(8, seed=1, step=2, substep=3, stream="training"), whole)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: nets.Normal(0), "dim must be at least 1, got 0"),
        (lambda: nets.Normal(3, mean=torch.zeros(2)), "dim must be the length of mean, 2, got 3"),
        (lambda: nets.Normal(mean=torch.tensor([0.0, math.nan])), "mean must be finite"),
        (lambda: nets.Normal(2, covariance=-1.0), "covariance must have positive variances"),
        (lambda: nets.Normal(2, covariance=torch.ones(3)), r"covariance must be \(\), \(2,\) or"),
        (
            lambda: nets.Normal(2, covariance=torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
            "covariance must be positive definite, least eigenvalue -1",
        ),
        (lambda: nets.Normal.from_precision(torch.ones(2, 3)), r"precision must be \(d, d\)"),
        (
            lambda: nets.Normal.from_precision([[2.0, 1.0], [0.0, 2.0]]),
            "precision must be symmetric, differs by 1",
        ),
        (lambda: nets.Product(nets.Normal(1), nets.Torus(1), (0, 1)), "circular must hold 1"),
        (lambda: nets.Product(nets.Normal(1), nets.Torus(1), (2,)), "circular must be different"),
    ],
)
def test_bad_bases(build, words):
    with pytest.raises(ValueError, match=words):
        build()


# ------------------------------------------------------------------------------------ networks, coupling
def test_parameter_counts_of_the_paper():
    """§4: 42 560 for d = 16, 5 blocks, h = 64, depth 3, and 83 840 for d = 32: 20 networks on all of x."""
    for d, total in ((16, 42_560), (32, 83_840)):
        net = MLP(d, 64, 3, d)
        assert 20 * sum(p.numel() for p in net.parameters()) == total
        assert [tuple(w.shape) for w in net.weights] == [(64, d), (d, 64)]
    assert len(MLP(4, 8, 5, 2).weights) == 4  # three hidden layers


@torch.no_grad()
def test_network_is_what_it_says():
    net = MLP(3, 400, 4, 2, 0.5, hidden_scale=2.0, seed=1).double()
    for weight, scale in zip(net.weights, (2.0, 2.0, 0.5), strict=True):
        n = weight.numel()
        ratio = float(weight.detach().std()) * math.sqrt(weight.shape[1]) / scale
        assert ratio == pytest.approx(1, abs=5 / math.sqrt(2 * n))
    x = noise((7, 3))
    h = x
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        bias.data += 0.1 * layer + 0.1
        h = h @ weight.T + bias
        h = h.clamp(min=0) if layer < 2 else h
    torch.testing.assert_close(net(x), h)


@torch.no_grad()
def test_affine_coupling_is_its_formula():
    layer = nets.AffineCoupling(5, [3, 0], 8, bound=0.4, init_scale=2.0, seed=2).double()
    z = noise((20, 5))
    x, log_det = layer.transform(z)
    u = z[:, [1, 2, 4]]
    s, t = 0.4 * torch.tanh(layer.scale(u)), 0.4 * layer.shift(u)
    torch.testing.assert_close(x[:, [1, 2, 4]], u)
    torch.testing.assert_close(x[:, [3, 0]], (z[:, [3, 0]] + t) * s.exp())
    torch.testing.assert_close(log_det, s.sum(1))
    assert float(log_det.abs().max()) <= 2 * 0.4
    assert float(log_det.abs().max()) > 0.2
    assert [tuple(w.shape) for w in layer.scale_weights()] == [(8, 3), (2, 8)]


@torch.no_grad()
def test_affine_couplings_make_a_real_nvp():
    flow = nets.RealNVP(6, 2, 16, 4, init_scale=1.0, seed=4).double()
    flow.weights.data += 0.1 * noise(tuple(flow.weights.shape))
    layers = []
    for c, tensors in enumerate(flow.shape.unpack(flow.weights.detach())):
        moved = [0, 1, 2] if c % 2 == 0 else [3, 4, 5]
        layer = nets.AffineCoupling(6, moved, 16, 4, bound=1 / 2).double()
        for k, net in enumerate((layer.scale, layer.shift)):
            weights = [tensors[0][:, 16 * k : 16 * k + 16], *[w[k] for w in tensors[2::2]]]
            biases = [tensors[1][16 * k : 16 * k + 16], *[b[k] for b in tensors[3::2]]]
            for own, given in zip([*net.weights, *net.biases], [*weights, *biases], strict=True):
                own.data = given.T.contiguous() if given.ndim == 2 else given
        layers.append(layer)
    stack = nets.Compose(*layers, base=nets.Normal(6))
    z = noise((30, 6))
    for ours, theirs in zip(stack.forward(z), flow.forward(z), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["realnvp", "spline", "circular"])
def test_flows_start_near_the_identity(name):
    build = {
        "realnvp": lambda: nets.RealNVP(6),
        "spline": lambda: nets.SplineFlow(6),
        "circular": lambda: nets.CircularSplineFlow(6),
    }[name]
    flow = build().double()
    z = flow.base.draw(200, seed=1, dtype=torch.float64)
    with torch.no_grad():
        x, log_det = flow.forward(z)
    off = torch.remainder(x - z + PI, 2 * PI) - PI
    assert 0 < float(off.abs().max()) < 0.3
    assert float(log_det.abs().max()) < 0.6


# ------------------------------------------------------------------------------------ splines
def spline_numbers(n: int, k: int, seed: int = 0):
    widths, heights = (noise((n, k), seed + i).softmax(-1) for i in (0, 1))
    return widths, heights, noise((n, k + 1), seed + 2).exp()


def test_rational_quadratic_against_zuko():
    zuko = pytest.importorskip("zuko")
    transform = zuko.transforms.MonotonicRQSTransform(
        noise((300, 6), 1), noise((300, 6), 2), noise((300, 5), 3), bound=2.5
    )
    widths, heights = (t.diff(dim=-1) / 5 for t in (transform.horizontal, transform.vertical))
    v, bound = (
        2.5 * (2 * torch.linspace(0.001, 0.999, 300).double() - 1),
        torch.tensor(2.5).double(),
    )
    y, log_slope = rational_quadratic(v, widths, heights, transform.derivatives, bound, False)
    expected, ladj = transform.call_and_ladj(v)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(log_slope, ladj)
    x, back = rational_quadratic(y, widths, heights, transform.derivatives, bound, True)
    torch.testing.assert_close(x, v)
    torch.testing.assert_close(back, -log_slope)


def test_spline_goes_through_its_knots():
    """At a knot the value is that of the knot and the slope the one given: the definition, by hand."""
    widths, heights, slopes = spline_numbers(1, 5)
    bound = torch.tensor(2.0, dtype=torch.float64)
    x = torch.cat((torch.zeros(1), widths[0].cumsum(0)[:-1])) * 4 - 2
    y = torch.cat((torch.zeros(1), heights[0].cumsum(0)[:-1])) * 4 - 2
    many = [t.expand(5, -1) for t in (widths, heights, slopes)]
    found, log_slope = rational_quadratic(x, *many, bound, False)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(log_slope, slopes[0, :5].log())
    # one bin with equal end slopes d and s = 1 at its middle: value in the middle, slope 2/(1 + d)·…
    d = 3.0
    middle, log_slope = rational_quadratic(
        torch.tensor([0.0]).double(), torch.ones(1, 1).double(), torch.ones(1, 1).double(),
        torch.full((1, 2), d).double(), bound, False,
    )  # fmt: skip
    assert float(middle) == pytest.approx(0, abs=1e-14)
    # f′ = (d/4 + 1/2 + d/4)/(1 + (2d − 2)/4)² = 2/(1 + d)
    assert float(log_slope.exp()) == pytest.approx(2 / (1 + d))


def test_inverse_spline_loses_no_digits():
    """Steep ends on flat bins, where the form of the root in the paper cancels: float32 against float64."""
    n = 2000
    widths = torch.tensor([0.5, 0.5]).double().expand(n, 2)
    heights = torch.tensor([0.002, 0.998]).double().expand(n, 2)
    slopes = torch.tensor([0.002, 40.0, 1.0]).double().expand(n, 3)
    v, bound = torch.linspace(-1, 1, n).double(), torch.tensor(1.0).double()
    y, log_slope = rational_quadratic(v, widths, heights, slopes, bound, False)
    x = rational_quadratic(y, widths, heights, slopes, bound, True)[0]
    torch.testing.assert_close(x, v, rtol=0, atol=1e-9)
    single = [t.float() for t in (y, widths, heights, slopes, bound)]
    x32, back32 = rational_quadratic(*single, True)
    # float32 of y moves x by 6e-8 / f′; nothing more may be lost
    allowed = 4e-7 * (1 + (-log_slope).exp())
    assert bool(((x32.double() - x).abs() < allowed).all())
    assert bool(torch.isfinite(back32).all())


@torch.no_grad()
def test_tails_are_the_identity():
    layer = nets.SplineCoupling(4, [1, 2], 8, bound=1.5, init_scale=1.0, seed=3).double()
    z = noise((50, 4))
    z[:, 1] = torch.linspace(-40, 40, 50)
    outside = z[:, 1].abs() > 1.5
    for run in (layer.transform, layer.untransform):
        x, _ = run(z)
        assert torch.equal(x[outside, 1], z[outside, 1])
        assert not torch.allclose(x[~outside, 1], z[~outside, 1])
        torch.testing.assert_close(x[:, [0, 3]], z[:, [0, 3]])
    # value and slope are continuous at ±B, so the density is
    for edge in (-1.5, 1.5):
        pair = noise((1, 4)).repeat(2, 1)
        pair[:, 2] = 0.3
        pair[:, 1] = torch.tensor([edge - 1e-9, edge + 1e-9])
        x, log_det = layer.transform(pair)
        torch.testing.assert_close(x[0], x[1], rtol=0, atol=1e-6)
        assert float(log_det[0] - log_det[1]) == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def test_identity_of_a_network_that_returns_zero():
    layer = nets.SplineCoupling(4, [1, 2], 8).double()
    for parameter in layer.parameters():
        parameter.data.zero_()
    z = noise((50, 4)) * 2
    x, log_det = layer.transform(z)
    torch.testing.assert_close(x, z)
    torch.testing.assert_close(log_det, torch.zeros(50, dtype=torch.float64))


@torch.no_grad()
def test_splines_grow_and_have_least_slopes():
    layer = nets.SplineCoupling(2, [1], 8, n_bins=6, init_scale=30.0, seed=1).double()
    z = torch.stack((torch.full((4000,), 0.7), torch.linspace(-6, 6, 4000)), 1).double()
    x, log_det = layer.transform(z)
    assert bool((x[:, 1].diff() > 0).all())
    assert bool(torch.isfinite(log_det).all()) and float(log_det.std()) > 0.5
    assert float(log_det.min()) > 4 * math.log(LEAST)


@torch.no_grad()
def test_nan_stays_nan():
    for layer in (nets.SplineCoupling(2, [1], 8), nets.CircularSplineCoupling(2, [1], 8)):
        x, _ = layer.transform(torch.tensor([[0.1, math.nan], [0.1, 0.2]]))
        assert bool(x[0, 1].isnan()) and bool(torch.isfinite(x[1]).all())


# ------------------------------------------------------------------------------------ the circle
@torch.no_grad()
def test_circular_flow_has_period_two_pi():
    flow = nets.CircularSplineFlow(
        6, 4, 16, n_bins=4, init_scale=0.5, circular=CIRCULAR, base=mixed_base(), seed=4
    ).double()
    x = flow.sample(300, seed=1)
    assert flow.circular == CIRCULAR
    assert float(x[:, CIRCULAR].abs().max()) <= PI
    expected = flow.log_prob(x)
    for i in CIRCULAR:
        for turns in (-1, 2):
            moved = x.clone()
            moved[:, i] += 2 * PI * turns
            torch.testing.assert_close(flow.log_prob(moved), expected, rtol=0, atol=1e-9)
    moved = x.clone()
    moved[:, 1] += 2 * PI  # this one is no angle
    assert not torch.allclose(flow.log_prob(moved), expected)


@pytest.mark.parametrize("shift", [True, False])
@torch.no_grad()
def test_no_seam(shift):
    """Density and its logarithm go on over the ends of the interval and over the ends of each spline."""
    layer = nets.CircularSplineCoupling(
        3, [0, 2], 16, n_bins=4, init_scale=1.0, shift=shift, seed=5
    ).double()
    ends = [
        torch.remainder(PI - float(c) + PI, torch.tensor(2 * PI)).item() - PI for c in layer.shift
    ]
    if shift:
        assert min(abs(abs(end) - PI) for end in ends) > 0.05
    for end in (*ends, PI):
        pair = torch.tensor([[0.4, 1.1, -0.9]], dtype=torch.float64).repeat(2, 1)
        pair[:, 0] = torch.tensor([end - 1e-8, end + 1e-8], dtype=torch.float64)
        for run in (layer.transform, layer.untransform):
            x, log_det = run(pair)
            off = torch.remainder(x[0, 0] - x[1, 0] + PI, 2 * PI) - PI
            assert abs(float(off)) < 1e-6
            assert float(log_det[0] - log_det[1]) == pytest.approx(0, abs=1e-5)
    # with the shift the ends of the interval are not fixed points, without they are
    edge = torch.tensor([[-PI, 1.1, -0.9]], dtype=torch.float64)
    x = float(layer.transform(edge)[0][0, 0])
    assert (abs(abs(x) - PI) < 1e-9) != shift


def test_two_bases_of_a_circular_flow():
    with pytest.raises(
        ValueError, match="base must be given where only 1 of 3 coordinates are angles"
    ):
        nets.CircularSplineFlow(3, circular=[1])
    assert isinstance(nets.CircularSplineFlow(3).base, nets.Torus)


# ------------------------------------------------------------------------------------ mixing
@pytest.mark.parametrize("form", ["lu", "orthogonal"])
@pytest.mark.parametrize("seed", [None, 3])
@torch.no_grad()
def test_invertible_linear(form, seed):
    layer = nets.InvertibleLinear(5, form, seed=seed).double()
    z = noise((20, 5))
    start = layer.weight().detach()
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(start @ start.T, identity)
    assert torch.equal(start, identity) == (seed is None)
    assert float(torch.linalg.det(start)) == pytest.approx(1)
    layer.entries.data += 0.5 * noise(tuple(layer.entries.shape), 9)
    weight = layer.weight()
    x, log_det = layer.transform(z)
    torch.testing.assert_close(x, z @ weight.T)
    expected = torch.linalg.slogdet(weight)[1].expand(20)
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-12)
    back, inverse_log_det = layer.untransform(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(inverse_log_det, -log_det)
    if form == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, identity)
    else:
        assert abs(float(log_det[0])) > 0.1


@torch.no_grad()
def test_permutations():
    z = noise((3, 7))
    assert torch.equal(nets.Permutation.reverse(7).transform(z)[0], z.flip(1))
    shuffle = nets.Permutation.random(7, seed=1)
    x, log_det = shuffle.transform(z)
    assert not torch.equal(x, z) and torch.equal(x.sort(1).values, z.sort(1).values)
    assert torch.equal(shuffle.untransform(x)[0], z) and not bool(log_det.any())
    assert torch.equal(nets.Permutation([2, 0, 1]).transform(z[:, :3])[0], z[:, [2, 0, 1]])
    others = [nets.Permutation.random(7, seed=s).order for s in range(5)]
    assert len({tuple(order.tolist()) for order in others}) == 5


# ------------------------------------------------------------------------------------ errors
class Scaled(nets.Flow):
    """x = 2 z, with faults on demand."""

    def __init__(self, wrong: str = "", base=None):
        super().__init__(3, base)
        self.wrong = wrong

    def transform(self, z):
        log_det = z.new_full((len(z),), 3 * math.log(2))
        if self.wrong == "range":  # its inverse is right wherever x is in the range
            z = z.clamp(-0.4, 0.4)
        return 2 * z, 0 * log_det if self.wrong == "log_det" else log_det

    def untransform(self, x):
        z = x / 2
        if self.wrong == "inverse":
            z = z + 0.01 * (torch.arange(len(x)) == 4)[:, None]
        if self.wrong == "nan":
            z = torch.where((torch.arange(len(x)) == 2)[:, None], math.nan, z)
        return z, x.new_full((len(x),), -3 * math.log(2))


def test_a_flow_that_does_not_invert():
    x = noise((6, 3)).float()
    nets.check_invertible(Scaled(), x)
    with pytest.raises(ValueError, match=r"forward\(inverse\(x\)\) is off by 0\.0.* at row 4"):
        nets.check_invertible(Scaled("inverse"), x)
    with pytest.raises(ValueError, match=r"flow does not invert: log-determinants .* at row 0"):
        nets.check_invertible(Scaled("log_det"), x)
    with pytest.raises(ValueError, match=r"flow does not invert: .* not finite at row 2"):
        nets.check_invertible(Scaled("nan"), x)
    with pytest.raises(ValueError, match=r"flow does not invert: densities .* of draws differ by"):
        nets.check_invertible(Scaled("range"), 0.1 * x)
    # the seam is no error
    flow = nets.CircularSplineFlow(2)
    nets.check_invertible(flow, torch.tensor([[PI, -PI], [-PI, PI]]))


def test_points_of_another_kind():
    flow = nets.RealNVP((2, 3))
    with pytest.raises(ValueError, match=r"z must be \(n, 6\), got shape \(5, 2, 3\)"):
        flow.forward(torch.zeros(5, 2, 3))
    with pytest.raises(ValueError, match=r"x must be \(n, 2, 3\), got shape \(5, 6\)"):
        flow.log_prob(torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"x must be torch.float32 on cpu, .* got torch.float64"):
        flow.inverse(torch.zeros(5, 2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"dtype must be that of the flow, torch.float32"):
        flow.sample(3, seed=0, dtype=torch.float64)
    with pytest.raises(ValueError, match="device must be that of the flow, cpu, got cuda"):
        flow.sample(3, seed=0, device="cuda")
    assert flow.double().sample(3, seed=0).dtype == torch.float64
    assert Scaled().double().sample(3, seed=0, device="cpu").dtype == torch.float64


@pytest.mark.parametrize("layer", [
    nets.Permutation([1, 0, 2]), nets.InvertibleLinear(3), nets.InvertibleLinear(3, "orthogonal"),
    nets.Permutation.reverse(6), Scaled(),
])  # fmt: skip
def test_layers_of_another_size(layer):
    """Twelve numbers are three points of four coordinates and four of three."""
    points = torch.arange(12.0).reshape(3, 4)
    with pytest.raises(ValueError, match=r"layers must have 4 coordinates|points must be"):
        nets.Compose(layer, event_shape=4).forward(points)
    with pytest.raises(ValueError, match=r"layers must have 4 coordinates|points must be"):
        nets.Compose(layer, event_shape=4).inverse(points)


class Narrow(Scaled):
    def transform(self, z):
        return z[:, :2], z.new_zeros(len(z))


def test_a_map_that_returns_another_number_of_coordinates():
    with pytest.raises(ValueError, match=r"transform of Narrow must return \(6, 3\).* \(6, 2\)"):
        Narrow().forward(torch.zeros(6, 3))
    layer = Narrow()
    layer.dim = 4
    with pytest.raises(ValueError, match="4 coordinates, got Narrow that returns 2"):
        nets.Compose(layer, event_shape=4).forward(torch.zeros(6, 4))


def test_events_must_agree():
    nets.check_event(nets.RealNVP(3), Scaled())
    with pytest.raises(
        ValueError, match=r"RealNVP must have the event shape .*, \(3,\), got \(4,\)"
    ):
        nets.check_event(nets.RealNVP(4), Scaled())


@pytest.mark.parametrize(
    "build, error, words",
    [
        (lambda: Scaled(base=nets.Normal(4)), ValueError, "base must have dimension 3"),
        (lambda: Scaled(base="normal"), TypeError, "base must be a base density, got str"),
        (lambda: nets.SplineFlow(1), ValueError, "event_shape must hold at least 2"),
        (lambda: nets.SplineFlow(4, 1), ValueError, "n_layers must be at least 2, got 1"),
        (lambda: nets.SplineFlow(4, n_bins=1), ValueError, "n_bins must be at least 2, got 1"),
        (lambda: nets.SplineFlow(4, bound=0.0), ValueError, "bound must be positive"),
        (lambda: nets.SplineFlow(4, depth=1), ValueError, "depth must be at least 2, got 1"),
        (lambda: nets.SplineFlow(4, hidden=2.5), TypeError, "hidden must be an integer, got 2.5"),
        (lambda: nets.AffineCoupling(3, [0, 1, 2]), ValueError, "moved must be some but not all"),
        (lambda: nets.RealNVP(2.5), TypeError, "dim must be an integer, got 2.5"),
        (lambda: nets.RealNVP(True), TypeError, "dim must be an integer, got True"),
        (lambda: nets.RealNVP((2, 0)), ValueError, "dim must be at least 1, got 0"),
        (lambda: nets.AffineCoupling(3, [3]), ValueError, "moved must be different coordinates"),
        (lambda: nets.AffineCoupling(3, [0], init_scale=0.0), ValueError, "init_scale must be pos"),
        (lambda: nets.Permutation([0, 0]), ValueError, "order must be different coordinates"),
        (lambda: nets.InvertibleLinear(3, "qr"), ValueError, "form must be"),
        (lambda: nets.Compose(event_shape=2), ValueError, "layers must not be empty"),
        (lambda: nets.Compose(nets.Permutation([0])), ValueError, "event_shape must be given"),
        (lambda: nets.Compose(torch.nn.ReLU(), event_shape=2), TypeError, "layers must be torch"),
        (
            lambda: nets.as_flow(3),
            TypeError,
            "flow must be a pysamp.nets.Flow or a zuko flow, got int",
        ),
    ],
)
def test_bad_arguments(build, error, words):
    with pytest.raises(error, match=words):
        build()


# ------------------------------------------------------------------------------------ zuko
needs_zuko = pytest.mark.skipif(importlib.util.find_spec("zuko") is None, reason="no zuko")


@needs_zuko
@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE"])
def test_zuko_density_is_that_of_zuko(name):
    import zuko

    torch.manual_seed(1)
    theirs = getattr(zuko.flows, name)(4, transforms=2, hidden_features=(16,)).double()
    ours = nets.as_flow(theirs)
    assert nets.as_flow(ours) is ours
    x, log_q = ours.sample_and_log_prob(300, seed=4)
    torch.testing.assert_close(theirs().log_prob(x), log_q, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.log_prob(x), theirs().log_prob(x))
    assert isinstance(ours.base, nets.Normal) and ours.base.standard
    # what is trained through one is trained in the other
    assert {id(p) for p in ours.parameters()} == {id(p) for p in theirs.parameters()}
    # the distribution itself is taken too
    torch.testing.assert_close(nets.as_flow(theirs()).log_prob(x), log_q)


@needs_zuko
def test_zuko_box_has_edges():
    import zuko

    edges = torch.full((2,), PI + 1e-5)
    box = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.BoxUniform, -edges, edges, buffer=True
    )
    ours = nets.as_flow(zuko.flows.Flow(zuko.flows.NSF(2).transform, box)).double()
    z = ours.base.draw(5000, seed=1, dtype=torch.float64)
    assert float(z.abs().max()) <= PI + 1.1e-5 and float(z.std()) == pytest.approx(
        PI / 3**0.5, abs=0.05
    )
    density = ours.base.log_prob(torch.tensor([[0.0, 0.0], [0.0, 3.2]], dtype=torch.float64))
    assert float(density[0]) == pytest.approx(-2 * math.log(2 * PI), abs=1e-4)
    assert float(density[1]) == -math.inf


@needs_zuko
def test_zuko_flows_that_cannot_be_taken():
    import zuko

    with pytest.raises(ValueError, match="must be a zuko flow without context, got a MAF"):
        nets.as_flow(zuko.flows.MAF(3, context=2))
    with pytest.raises(TypeError, match="a transform of a base, got a GMM that returns Mixture"):
        nets.as_flow(zuko.flows.GMM(3, components=2))
    trained = zuko.flows.Flow(
        zuko.flows.MAF(2).transform,
        zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(2), torch.ones(2)
        ),
    )
    with pytest.raises(TypeError, match="base of a zuko flow must be fixed"):
        nets.as_flow(trained)
    one, other = (zuko.flows.NCSF(2, transforms=t, hidden_features=(8,)) for t in (1, 2))
    for circular in (one, one(), other.double()):  # wrong outside [−π, π)
        with pytest.raises(ValueError, match=r"use nets.CircularSplineFlow\(2\) in its place"):
            nets.as_flow(circular)
    with pytest.raises(TypeError, match="got Linear"):
        nets.as_flow(torch.nn.Linear(2, 2))
