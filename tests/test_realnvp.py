"""The native coupling flow: its formula, its inverse and gradients, that it follows its weights."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import pysamp
from pysamp import _native, couplings, nets
from pysamp.timing import using_threads

FLOWS = {  # arguments of RealNVP, and keywords
    "joint": ((16, 4, 32, 4), {"conditioner": "joint"}),
    "separate": ((16, 5, 64, 3), {}),
    "odd": ((7, 2, 19, 4), {}),
    "odd, alternate": (((3, 3), 3, 11, 5), {"mask": "alternate"}),
    "two": ((2, 1, 1, 3), {"conditioner": "joint", "mask": "alternate"}),
}
needs_native = pytest.mark.skipif(
    _native.module_for(torch.device("cpu")) is None, reason="no native module for cpu"
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make(name: str, dtype: torch.dtype = torch.float64) -> nets.RealNVP:
    """Far from the identity, with biases: zeros would hide errors."""
    arguments, keywords = FLOWS[name]
    flow = nets.RealNVP(*arguments, init_scale=1.0, seed=3, **keywords)
    with torch.no_grad():
        flow.weights += 0.05 * noise(len(flow.weights), dtype=torch.float32)
    return flow.to(dtype)


def both_ways(flow: nets.RealNVP, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Image and ln det of the points, and of the inverse at the same points."""
    return *flow.forward(z), *flow.inverse(z.reshape(-1, *flow.event_shape))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks of this size gain nothing from two, and lose much where others use the machine."""
    with using_threads(1):
        yield


@pytest.fixture(params=FLOWS)
def name(request) -> str:
    return request.param


# ------------------------------------------------------------------------------- what it computes
def of_the_paper(flow: nets.RealNVP, x: np.ndarray, inverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """§4 of the specification to the letter: networks on all d coordinates, behind masks."""
    d, shape = flow.dim, flow.shape
    first = np.zeros(d)
    if flow.mask == "half":
        first[: d // 2] = 1
    else:
        first[::2] = 1
    tensors = [[t.detach().numpy() for t in c] for c in shape.unpack(flow.weights)]
    dt, log_det = 1 / flow.n_blocks, np.zeros(len(x))
    for c in range(2 * flow.n_blocks)[:: -1 if inverse else 1]:
        m = first if c % 2 == 0 else 1 - first  # of what the coupling updates
        found = []
        for net in range(shape.nets):
            h = shape.hidden
            into = np.zeros((d, h))
            into[m == 0] = tensors[c][0][:, net * h : (net + 1) * h]
            value = (x * (1 - m)) @ into + tensors[c][1][net * h : (net + 1) * h]
            for weight, bias in zip(tensors[c][2::2], tensors[c][3::2], strict=True):
                value = np.maximum(value, 0) @ weight[net] + bias[net]
            found += np.split(value, 2, 1) if shape.nets == 1 else [value]
        s, t = np.zeros_like(x), np.zeros_like(x)
        s[:, m == 1], t[:, m == 1] = dt * np.tanh(found[0]), dt * found[1]
        x = x * np.exp(-s) - t if inverse else (x + t) * np.exp(s)
        log_det = log_det + (-1 if inverse else 1) * s.sum(1)
    return x, log_det


@torch.no_grad()
def test_it_is_the_flow_of_the_paper(name):
    flow, z = make(name), noise(40, make(name).dim)
    x, log_det, back, inverse_log_det = both_ways(flow, z)
    found = ((x.flatten(1), log_det), (back, inverse_log_det))
    for inverse, pair in zip((False, True), found, strict=True):
        expected = of_the_paper(flow, z.numpy(), inverse)
        for f, e in zip(pair, expected, strict=True):
            np.testing.assert_allclose(f.numpy(), e, rtol=1e-12, atol=1e-12)
    assert float(log_det.abs().max()) > 0.1


@pytest.mark.parametrize("d, of_paper, stored", [(16, 42_560, 21_920), (32, 83_840, 42_560)])
def test_parameter_counts_of_the_paper(d, of_paper, stored):
    flow = nets.RealNVP(d, 5, 64, 3)
    assert sum(p.numel() for p in flow.parameters()) == flow.shape.n_parameters() == stored
    silenced = 0
    for c in range(10):
        read, moved = flow.shape.sizes(c)
        silenced += 2 * ((d - read) * 64 + (d - moved) * (64 + 1))
    assert stored + silenced == of_paper


@pytest.mark.parametrize("backend", ["native", "torch"])
@torch.no_grad()
def test_round_trip(name, dtype, backend):
    if backend == "native" and _native.module_for(torch.device("cpu")) is None:
        pytest.skip("no native module for cpu")
    flow, bound = make(name, dtype), 1e-4 if dtype == torch.float32 else 1e-10
    z = flow.base.draw(500, seed=1, dtype=dtype)
    with pysamp.backend(backend):
        x, log_det = flow.forward(z)
        again, inverse_log_det = flow.inverse(x)
    assert float((again - z).abs().max()) < bound
    assert float((log_det + inverse_log_det).abs().max()) < bound
    assert float((x.flatten(1) - z).abs().mean()) > 0.02


def test_log_det_is_that_of_the_jacobian():
    """At d = 6 in float64 to 1e-6, weights at init_scale 1."""
    flow = nets.RealNVP(6, 3, 16, 4, init_scale=1.0, seed=2).double()
    for point in noise(4, 6):
        for way in (flow.forward, flow.inverse):

            def image(v, way=way):
                return way(v[None])[0][0]

            jacobian = torch.autograd.functional.jacobian(image, point)
            expected = torch.linalg.slogdet(jacobian)[1]
            found = way(point[None])[1].detach()
            assert float(found) == pytest.approx(float(expected), abs=1e-6)
            assert abs(float(expected)) > 1e-3


@torch.no_grad()
def test_scales_are_bounded(name, dtype):
    """|s| ≤ 1/n_blocks: the largest S give the largest ln det, d, and no number overflows."""
    flow = make(name, dtype)
    d, moved = flow.dim, [flow.shape.sizes(c)[1] for c in range(flow.shape.n_couplings)]
    for tensors, k in zip(flow.shape.unpack(flow.weights), moved, strict=True):
        tensors[-1][0, :k] += 1000  # the bias of S
    z = noise(60, d, dtype=dtype)
    _, log_det, _, inverse_log_det = both_ways(flow, z)
    torch.testing.assert_close(log_det, torch.full_like(log_det, sum(moved) / flow.n_blocks))
    torch.testing.assert_close(inverse_log_det, -log_det)
    flow.weights *= 10
    for out in both_ways(flow, z):
        assert bool(torch.isfinite(out).all())
    assert float(flow.forward(z)[1].abs().max()) <= d * (1 + 1e-5)


@torch.no_grad()
def test_nan_stays_in_its_row(name, dtype):
    flow, z = make(name, dtype), noise(60, make(name).dim, dtype=dtype)
    clean = both_ways(flow, z)
    bad = z.clone()
    bad[[0, 37]] = math.nan
    bad[50, -1] = math.nan
    rows = torch.zeros(60, dtype=torch.bool)
    rows[[0, 37, 50]] = True
    for found, expected in zip(both_ways(flow, bad), clean, strict=True):
        assert torch.equal(found[~rows], expected[~rows])
        assert bool(found[rows].isnan().flatten(1).any(1).all() if found.ndim > 1 else True)
        assert found.ndim > 1 or bool(found[rows].isnan().all())


# ------------------------------------------------------------------------------- native and torch
@needs_native
def test_native_equals_torch(name, dtype):
    """Images, ln det, gradients of points and of weights, whatever the number of points."""
    flow = make(name, dtype)
    bound = 2e-5 if dtype == torch.float32 else 1e-12
    for n in (1, 33, 150):
        for way in ("forward", "inverse"):
            z = noise(n, 2 * flow.dim, seed=n, dtype=dtype)[:, ::2]  # not contiguous
            z = z.reshape(n, *flow.event_shape) if way == "inverse" else z
            z.requires_grad_(True)
            found = []
            for backend in ("native", "torch"):
                with pysamp.backend(backend):
                    x, log_det = getattr(flow, way)(z)
                    loss = (x * noise(*x.shape, seed=7, dtype=dtype)).sum()
                    loss = loss + (log_det * noise(n, seed=8, dtype=dtype)).sum()
                    gradients = torch.autograd.grad(loss, (z, flow.weights))
                with torch.no_grad(), pysamp.backend(backend):
                    plain = getattr(flow, way)(z)
                found.append([t.detach() for t in (x, log_det, *plain, *gradients)])
            for f, e in zip(*found, strict=True):
                assert f.shape == e.shape and f.dtype == dtype
                assert float((f - e).abs().max()) <= bound * float(e.abs().max()), (n, way)
                assert bool(e.any())


@needs_native
def test_native_is_what_runs(monkeypatch):
    def forbidden(*_):
        raise AssertionError("the torch definition was called")

    monkeypatch.setattr(couplings, "stack", forbidden)
    flow = make("joint", torch.float32)
    x = flow.sample(5, seed=1)
    flow.log_prob(x).sum().backward()
    assert bool(flow.weights.grad.any())
    flow.requires_grad_(False)
    x.requires_grad_(True)
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    assert bool(score.any())
    with pysamp.backend("torch"), pytest.raises(AssertionError, match="was called"):
        flow.log_prob(x)


@needs_native
@pytest.mark.parametrize("name", ["odd", "odd, alternate", "two"], indirect=True)
def test_second_derivatives(name):
    """The gradient of a squared score, as in score matching, with respect to the weights."""
    flow = make(name)
    x = noise(6, *flow.event_shape).requires_grad_(True)
    found = []
    for backend in ("native", "torch"):
        with pysamp.backend(backend):
            (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(score.square().sum(), (x, flow.weights)))
    for f, e in zip(*found, strict=True):
        torch.testing.assert_close(f, e)
        assert bool(e.any())


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(dtype, threads):
    """To the last bit, on one thread and on two, whatever the number of points beside it."""
    flow = nets.RealNVP(16, 2, 64, 3, init_scale=1.0, seed=3).to(dtype)
    z = noise(1501, 16, dtype=dtype)
    with pysamp.backend("torch"):
        definition = both_ways(flow, z)
    if _native.module_for(z.device) is None:
        pytest.skip("no native module for cpu: torch's products depend on the batch")
    with using_threads(1):
        whole = both_ways(flow, z)
    sizes = [1, 2, 15, 16, 17, 31, 33, 47, 48, 49, 96, 145, 1000]
    with using_threads(threads):
        parts = [both_ways(flow, part) for part in z.split([*sizes, 1501 - sum(sizes)])]
        same = both_ways(flow, z)
    for k, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[k] for part in parts]), expected)
        assert torch.equal(same[k], expected)
        torch.testing.assert_close(expected, definition[k], rtol=1e-4, atol=1e-5)


def test_gradients_do_not_depend_on_threads(dtype):
    """Those of points to the last bit; those of weights, sums over points, to rounding."""
    flow = nets.RealNVP(16, 2, 64, 3, init_scale=1.0, seed=3).to(dtype)
    x = noise(1500, 16, dtype=dtype).requires_grad_(True)
    found = []
    for threads in (1, 2, 2):
        with using_threads(threads):
            found.append(torch.autograd.grad(flow.log_prob(x).sum(), (x, flow.weights)))
    (one, one_w), (two, two_w), (again, again_w) = found
    exact = _native.module_for(x.device) is not None
    assert torch.equal(one, two) or not exact
    assert torch.equal(two, again) and torch.equal(two_w, again_w)
    bound = (1e-5 if dtype == torch.float32 else 1e-13) * float(one_w.abs().max())
    torch.testing.assert_close(two_w, one_w, rtol=0, atol=bound)


# ------------------------------------------------------------------------------- its weights
@torch.no_grad()
def test_changes_of_weights_are_seen_at_once(name):
    flow, z = make(name), noise(20, make(name).dim)
    seen = [flow.forward(z)[0]]

    def changed(by) -> None:
        by()
        x = flow.forward(z)[0]
        assert not any(torch.equal(x, other) for other in seen)
        expected = of_the_paper(flow, z.numpy(), False)[0]
        np.testing.assert_allclose(x.flatten(1).numpy(), expected, rtol=1e-12, atol=1e-12)
        seen.append(x)

    changed(lambda: flow.weights.data.add_(0.01))
    changed(lambda: flow.weights.mul_(1.1))
    changed(lambda: flow.load_state_dict({k: 0.9 * v for k, v in flow.state_dict().items()}))

    def step() -> None:
        optimiser = torch.optim.Adam(flow.parameters(), lr=0.02)
        with torch.enable_grad():
            flow.log_prob(noise(50, *flow.event_shape)).sum().backward()
        optimiser.step()

    changed(step)
    changed(lambda: setattr(flow, "weights", torch.nn.Parameter(1.05 * flow.weights)))


@torch.no_grad()
def test_copies_and_precisions(name):
    flow, z = make(name, torch.float32), noise(20, make(name).dim)
    x = flow.forward(z.float())[0]
    other = copy.deepcopy(flow)
    flow.weights.mul_(0.5)
    assert torch.equal(other.forward(z.float())[0], x)
    assert not torch.equal(flow.forward(z.float())[0], x)
    flow.load_state_dict(other.state_dict())
    assert torch.equal(flow.forward(z.float())[0], x)
    doubled = other.double().forward(z)[0]
    assert doubled.dtype == torch.float64
    np.testing.assert_allclose(doubled, of_the_paper(other, z.numpy(), False)[0].reshape(x.shape))
    torch.testing.assert_close(doubled.float(), x, rtol=1e-4, atol=1e-5)
    another = nets.RealNVP(*FLOWS["separate"][0][:1], 3)
    with pytest.raises(RuntimeError, match="size mismatch for weights"):
        another.load_state_dict(other.state_dict())


def test_modes_of_autograd(dtype):
    flow, z = make("separate", dtype), noise(20, 16, dtype=dtype)
    x, log_det = flow.forward(z)
    assert x.requires_grad and log_det.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = flow.forward(z)
            assert not found[0].requires_grad
            assert torch.equal(found[0], x) and torch.equal(found[1], log_det)
            assert torch.equal(flow.inverse(found[0])[0], flow.inverse(x)[0])
    flow.requires_grad_(False)
    assert not flow.forward(z)[0].requires_grad
    z.requires_grad_(True)
    (gradient,) = torch.autograd.grad(flow.forward(z)[0].sum(), z)
    assert bool(gradient.any()) and flow.weights.grad is None


def losses(backend: str, steps: int = 25) -> list[float]:
    """Forward KL on a banana, by plain gradient descent."""
    flow = nets.RealNVP(4, 3, 16, 3, seed=1).double()
    z = noise(200, 4, seed=5)
    x = torch.stack((z[:, 0], 0.5 * z[:, 1] + z[:, 0] ** 2, 1 + 0.3 * z[:, 2], z[:, 3]), 1)
    optimiser, found = torch.optim.Adam(flow.parameters(), lr=0.02), []
    with pysamp.backend(backend):
        for _ in range(steps):
            optimiser.zero_grad()
            loss = -flow.log_prob(x).mean()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
    return found


@needs_native
def test_training_is_that_of_torch():
    found, expected = losses("native"), losses("torch")
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert found[-1] < found[0] - 0.5


def test_a_compiled_training_step():
    flow, x = make("joint"), noise(40, 16)
    torch._dynamo.reset()

    def loss() -> torch.Tensor:
        return -flow.log_prob(x).mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values, gradients = [], []
    for function in (loss, compiled):
        value = function()
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, flow.weights)[0])
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert bool(gradients[0].any())
    with torch.no_grad():  # a graph reads its parameters, too
        flow.weights -= 0.05 * gradients[0]
    torch.testing.assert_close(compiled(), loss())
    with torch.no_grad():
        assert float(loss()) < float(values[0])


@torch.no_grad()
def test_initialisation_is_a_function_of_the_seed():
    first, same, other = (nets.RealNVP(16, 5, 64, 4, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first.weights, same.weights)
    assert not torch.equal(first.weights, other.weights)
    assert float(first.weights.abs().max()) < 1e-5
    flow = nets.RealNVP(16, 5, 64, 4, init_scale=2.0, seed=7)
    torch.testing.assert_close(flow.weights, 2e6 * first.weights, rtol=1e-5, atol=0)
    for tensors in flow.shape.unpack(flow.weights):
        for k, tensor in enumerate(tensors):
            if k % 2:
                assert not tensor.any()
                continue
            ratio = float(tensor.std()) * math.sqrt(16 if k == 0 else 64) / 2
            assert ratio == pytest.approx(1, abs=5 / math.sqrt(2 * tensor.numel()))
            assert len(tensor.unique()) > 0.999 * tensor.numel()  # no number is used twice
    z = noise(100, 16, dtype=torch.float32)
    x, log_det = first.forward(z)
    assert float((x - z).abs().max()) < 1e-4 and float(log_det.abs().max()) < 1e-4


@torch.no_grad()
def test_weights_of_the_scale():
    flow = nets.RealNVP(6, 2, 8, 4, init_scale=1.0)
    assert [tuple(w.shape) for w in flow.scale_weights()] == 4 * [(3, 8), (8, 8), (8, 3)]
    z = noise(10, 6, dtype=torch.float32)
    assert float(flow.forward(z)[1].abs().max()) > 0.1
    for weight in flow.scale_weights():
        weight.zero_()
    x, log_det = flow.forward(z)
    assert not log_det.any()
    assert float((x - z).abs().min(1).values.min()) > 0  # shifts are still there
    joint = nets.RealNVP(6, 2, 8, 4, conditioner="joint", init_scale=1.0)
    assert [tuple(w.shape) for w in joint.scale_weights()] == 4 * [(3, 8), (8, 8), (8, 6)]
    penalty = sum(w.square().sum() for w in joint.scale_weights())
    torch.testing.assert_close(penalty, joint.weights.square().sum())  # the biases are zero


@pytest.mark.parametrize(
    "arguments, keywords, words",
    [
        ((1,), {}, "dim must give at least 2 coordinates, got 1"),
        (((1, 1),), {}, r"dim must give at least 2 coordinates, got \(1, 1\)"),
        ((4, 0), {}, "n_blocks must be an int of at least 1, got 0"),
        ((4, 2.0), {}, "n_blocks must be an int of at least 1, got 2.0"),
        ((4, True), {}, "n_blocks must be an int of at least 1, got True"),
        ((4, 2, 0), {}, "hidden must be an int of at least 1, got 0"),
        ((4, 2, 8, 2), {}, "depth must be an int of at least 3, got 2"),
        ((4,), {"mask": "third"}, "mask must be .*, got 'third'"),
        ((4,), {"conditioner": "both"}, "conditioner must be .*, got 'both'"),
        ((4,), {"init_scale": 0.0}, "init_scale must be positive and finite, got 0.0"),
        ((4,), {"init_scale": math.nan}, "init_scale must be positive and finite, got nan"),
        ((4,), {"base": nets.Normal(3)}, "base must have dimension 4"),
    ],
)
def test_bad_arguments(arguments, keywords, words):
    with pytest.raises(ValueError, match=words):
        nets.RealNVP(*arguments, **keywords)


# ------------------------------------------------------------------------------- normflows
@torch.no_grad()
def test_normflows_with_our_networks_is_the_same_flow():
    """Its couplings are v e^s + b: with b = t e^s they are ours."""
    normflows = pytest.importorskip("normflows", reason="normflows is not installed")
    flow = make("joint")
    moved = flow.shape.sizes(0)[1]

    class Parameters(torch.nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.tensors = flow.shape.unpack(flow.weights)[c]

        def forward(self, u: torch.Tensor) -> torch.Tensor:
            raw_scale, raw_shift = couplings.conditioner(u, self.tensors, flow.shape.nets)
            s = torch.tanh(raw_scale) / flow.n_blocks
            shift = raw_shift / flow.n_blocks * s.exp()
            return torch.stack((shift, s), 2).flatten(1)  # one after the other, as it takes them

    layers = [
        normflows.flows.AffineCouplingBlock(
            Parameters(c), split_mode="channel" if c % 2 else "channel_inv"
        )
        for c in range(flow.shape.n_couplings)
    ]
    z = noise(30, 16)
    x, log_det = z, torch.zeros(30, dtype=torch.float64)
    for layer in layers:
        x, part = layer(x)
        log_det = log_det + part
    torch.testing.assert_close(flow.forward(z), (x, log_det))
    back, inverse_log_det = x, torch.zeros_like(log_det)
    for layer in layers[::-1]:
        back, part = layer.inverse(back)
        inverse_log_det = inverse_log_det + part
    torch.testing.assert_close(flow.inverse(x), (back, inverse_log_det))
    assert moved == 8 and float((x - z).abs().mean()) > 0.1
