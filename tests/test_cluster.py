"""Cluster moves: exact distributions of small lattices, clusters by graph search, and bookkeeping."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import iv

import pysamp
from pysamp import reference, rng
from pysamp.mcmc import Metropolis
from pysamp.mcmc.base import replace
from pysamp.mcmc.cluster import SwendsenWang, Wolff, cluster_labels
from pysamp.mcmc.records import mean_record
from pysamp.reference import renormalises
from pysamp.target import Counted, Tempered, Tilted
from pysamp.targets import EightGaussians, Phi4, Phi4Chain
from pysamp.targets.on import ON

F64 = torch.float64
SE = 5.0
BOTH = [SwendsenWang(), Wolff()]
both = pytest.mark.parametrize("kernel", BOTH, ids=["sw", "wolff"])


def enumerated(target):
    """All states of an Ising model, and their probabilities by its log_prob."""
    v = math.prod(target.shape)
    x = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=v)), dtype=F64)
    x = x.reshape(-1, *target.event_shape)
    return x, torch.softmax(target.log_prob(x), 0)


def drawn(p, n, seed=1):
    return torch.multinomial(p, n, True, generator=torch.Generator().manual_seed(seed))


def z_of_counts(values, all_values, p):
    """The largest deviation of a histogram, in standard errors; bins that expect fewer than 25 go
    together."""
    n = len(values)
    keys, at = torch.unique((all_values * 1e6).round(), return_inverse=True)
    weights = torch.zeros(len(keys), dtype=F64).scatter_add_(0, at, p)
    found = torch.searchsorted(keys, (values * 1e6).round())
    assert torch.equal(keys[found], (values * 1e6).round())
    counts = torch.bincount(found, minlength=len(keys)).double()
    rare = n * weights < 25
    weights = torch.cat((weights[~rare], weights[rare].sum()[None]))
    counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
    spread = (n * weights * (1 - weights)).sqrt().clamp_min(1.0)
    return float(((counts - n * weights) / spread).abs().max())


def z_of_mean(values, expected):
    values = values.double()
    return float((values.mean() - expected).abs() / (values.std() / len(values) ** 0.5))


# ---------------------------------------------------------------------------- right answers
ISING = {
    "3x3": ON((3, 3), 1, 0.44),
    "4x4": ON((4, 4), 1, 0.42),
    "4x4 open": ON((4, 4), 1, 0.5, periodic=False),
    "double bonds": ON((2, 5), 1, 0.3),
    "2x2x2": ON((2, 2, 2), 1, 0.15),
    "ring of 5": ON((5,), 1, 0.8),
}


@both
@pytest.mark.parametrize("name", ISING)
def test_the_exact_ising_distribution_is_invariant(kernel, name):
    """From exact samples to samples that are exact still, and new ones."""
    target, n = ISING[name], 10_000
    every, p = enumerated(target)
    start = every[drawn(p, n)]
    state, info = kernel.step(target, kernel.init(target, start, seed=3), 3)
    assert float((state.x != start).flatten(1).any(1).double().mean()) > 0.7
    assert bool((state.x.abs() == 1).all())
    assert z_of_counts(state.log_prob, target.log_prob(every), p) < SE
    m, all_m = state.x.flatten(1).mean(1), every.flatten(1).mean(1)
    assert z_of_counts(m, all_m, p) < SE
    assert z_of_counts(m.abs(), all_m.abs(), p) < SE
    assert z_of_mean(info.extra["cluster_size"], float(p @ all_m**2)) < SE  # the estimator of m²


@both
def test_from_one_state_to_all(kernel):
    target, n = ISING["3x3"], 5000
    every, p = enumerated(target)
    start = torch.ones(n, *target.event_shape, dtype=F64)
    state, _ = kernel.step(target, kernel.init(target, start, seed=4), 40)
    assert z_of_counts(state.log_prob, target.log_prob(every), p) < SE
    assert z_of_counts(state.x.flatten(1).mean(1), every.flatten(1).mean(1), p) < SE


@both
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_correlations_of_an_open_chain(kernel, n):
    """⟨s_0·s_k⟩ = A^k with A = I_{n/2}(β)/I_{n/2−1}(β): the bonds of an open chain are independent."""
    target, beta = ON((4,), n, 1.3, periodic=False), 1.3
    start = target.start(4000, seed=5, dtype=F64)
    state, _ = kernel.step(target, kernel.init(target, start, seed=6), 40)
    a = iv(n / 2, beta) / iv(n / 2 - 1, beta)
    for k in (1, 2, 3):
        assert z_of_mean((state.x[:, 0] * state.x[:, k]).sum(1), a**k) < SE
    assert z_of_mean(state.x[:, 1, -1], 0.0) < SE


@both
def test_three_xy_spins_on_a_ring(kernel):
    """⟨cos(θ_1 − θ_0)⟩ and ⟨cos²⟩ by quadrature over the two angles between neighbours."""
    beta = 0.9
    target = ON((3,), 2, beta)
    angle = torch.arange(256, dtype=F64) * (2 * math.pi / 256)
    a, b = angle[:, None], angle[None, :]
    weight = torch.exp(beta * (a.cos() + b.cos() + (a + b).cos()))
    weight = weight / weight.sum()
    expected, square = float((weight * a.cos()).sum()), float((weight * a.cos() ** 2).sum())
    start = target.start(4000, seed=7, dtype=F64)
    state, _ = kernel.step(target, kernel.init(target, start, seed=8), 30)
    dot = (state.x[:, 0] * state.x[:, 1]).sum(1)
    assert z_of_mean(dot, expected) < SE
    assert z_of_mean(dot**2, square) < SE
    assert z_of_mean(target.observables(state.x)["energy"], -expected) < SE


@both
@pytest.mark.parametrize("sites", [2, 3])
def test_the_sign_flip_of_phi4_keeps_the_density(kernel, sites):
    """On a grid of fields that is symmetric in sign the flips stay on the grid, and its normalised
    weights e^{−S} are the exact distribution."""
    target, n = Phi4((sites,), 0.3, 0.4), 20_000
    axis = torch.linspace(-2.2, 2.2, 30, dtype=F64)
    every = torch.stack(torch.meshgrid(*[axis] * sites, indexing="ij"), -1).reshape(-1, sites)
    action = (-0.6 * every * every.roll(1, 1) + every**2 + 0.4 * (every**2 - 1) ** 2).sum(1)
    p = torch.softmax(-action, 0)
    start = every[drawn(p, n)]
    state, _ = kernel.step(target, kernel.init(target, start, seed=9), 3)
    assert float((state.x != start).any(1).double().mean()) > 0.6
    assert torch.equal(state.x.abs(), start.abs())
    for f in (
        lambda x: x.mean(1),
        lambda x: x[:, 0] * x[:, 1],
        lambda x: x.mean(1).abs(),
        lambda x: (x[:, 0] * x[:, 1]) ** 2 * x[:, 0].sign() * x[:, 1].sign(),
    ):
        assert z_of_mean(f(state.x), float(p @ f(every))) < SE


def alternate(kernel, target, state, n, width):
    """n times one cluster step and a sweep of Metropolis."""
    for _ in range(n):
        state, _ = Metropolis(width).step(target, state)
        state, _ = kernel.step(target, state)
    return state


@both
def test_phi4_with_metropolis(kernel):
    """Two sites by quadrature, from a start in one phase: the flips carry chains across the barrier."""
    target = Phi4((2,), 0.4, 3.0)
    axis = torch.linspace(-2.5, 2.5, 401, dtype=F64)
    a, b = axis[:, None], axis[None, :]
    log_p = 4 * 0.4 * a * b - sum(v**2 + 3.0 * (v**2 - 1) ** 2 for v in (a, b))
    p = torch.softmax(log_p.flatten(), 0).reshape(401, 401)
    start = 1 + 0.1 * rng.normal((3000, 2), seed=1, stream="start", dtype=F64)
    state = alternate(kernel, target, kernel.init(target, start, seed=10), 40, 0.8)
    x = state.x
    assert z_of_mean(x[:, 0], 0.0) < SE
    assert z_of_mean(x[:, 0] * x[:, 1], float((p * a * b).sum())) < SE
    assert z_of_mean(x[:, 0] ** 2, float((p * a**2).sum())) < SE


@both
def test_two_soft_spins(kernel):
    """−log p = (φ_0 − φ_1)² + Σ [½ r φ² + (u/8)(φ²)²] for n = 2, by quadrature over lengths and angle."""
    r, u = -1.5, 2.0
    target = ON.soft((2,), 2, r, u)
    size = torch.linspace(0, 4, 201, dtype=F64)[1:]
    angle = torch.arange(64, dtype=F64) * (2 * math.pi / 64)
    a, b, c = size[:, None, None], size[None, :, None], angle.cos()[None, None, :]
    dot = a * b * c
    log_p = -(a**2 + b**2 - 2 * dot) - sum(r / 2 * v**2 + u / 8 * v**4 for v in (a, b))
    p = torch.softmax((log_p + a.log() + b.log()).flatten(), 0).reshape(dot.shape)
    start = rng.normal((3000, 2, 2), seed=2, stream="start", dtype=F64)
    state = alternate(kernel, target, kernel.init(target, start, seed=11), 40, 1.5)
    found = (state.x[:, 0] * state.x[:, 1]).sum(1)
    assert z_of_mean(found, float((p * dot).sum())) < SE
    assert z_of_mean(found**2, float((p * dot**2).sum())) < SE
    assert z_of_mean(state.x[:, 0].square().sum(1), float((p * a**2).sum())) < SE
    assert z_of_mean(state.x[:, 0, 1], 0.0) < SE


# ---------------------------------------------------------------------------- clusters
@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "open"])
@pytest.mark.parametrize(
    "shape", [(2,), (9,), (2, 2), (6, 5), (2, 7), (16, 16), (2, 3, 4), (4, 4, 4)]
)
def test_labels_are_those_of_a_graph_search(shape, periodic):
    table = reference.lattice_neighbours(shape, periodic)
    ahead, v, d = table[:, 1::2], len(table), len(shape)
    inside = ahead < v
    # from no bond over the percolation threshold to all
    shares = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])[:, None, None]
    active = (rng.uniform((6, v, d), seed=1) < shares) & inside
    found = cluster_labels(active, ahead)
    site = torch.arange(v)[:, None].expand(v, d)
    for row in range(6):
        on = active[row]
        pairs = (site[on].numpy(), ahead[on].numpy())
        graph = coo_matrix((np.ones(len(pairs[0])), pairs), shape=(v, v))
        _, component = connected_components(graph, directed=False)
        least = [int(np.flatnonzero(component == c)[0]) for c in component]
        assert found[row].tolist() == least


def test_labels_of_a_snake():
    """One cluster whose sites follow each other in an order far from that of their numbers."""
    v = 400
    order = torch.argsort(rng.uniform((1, v), seed=3)[0])
    ahead = torch.full((v, 1), v)
    ahead[order[:-1], 0] = order[1:]
    label = cluster_labels((ahead < v)[None], ahead)
    assert torch.equal(label, torch.zeros(1, v, dtype=torch.int64))


# ---------------------------------------------------------------------------- bookkeeping
TARGETS = {
    "ising": ON((6, 5), 1, 0.4),
    "ising 3-d": ON((2, 4, 3), 1, 0.2),
    "ising 1-d": ON((9,), 1, 0.7, periodic=False),
    "xy": ON((5, 4), 2, 0.9),
    "heisenberg": ON((3, 2, 4), 3, 0.7, periodic=False),
    "o5": ON((4, 4), 5, 1.5),
    "phi4": Phi4((5, 6), 0.25, 0.1),
    "phi4 chain": Phi4Chain(17, beta=4.0),
    "soft 1": ON.soft((4, 4), 1, -1.0, 2.0),
    "soft 3": ON.soft((3, 5), 3, -1.0, 2.0, periodic=False),
}


def begin(kernel, target, n=11, first=3, device="cpu", dtype=torch.float32):
    options = {"seed": 5, "first_chain": first, "device": device, "dtype": dtype}
    base = target.base if isinstance(target, (Counted, Tempered)) else target
    if isinstance(base, ON):
        x = base.start(n, **options)
    else:
        x = rng.normal((n, *target.event_shape), stream="start", **options)
    return kernel.init(target, x, seed=2**50 + 77, first_chain=first)


def same(a, b):
    counters = (a.step, a.seed, a.first_chain) == (b.step, b.seed, b.first_chain)
    return counters and torch.equal(a.x, b.x) and torch.equal(a.log_prob, b.log_prob)


@both
@pytest.mark.parametrize("name", TARGETS)
def test_native_equals_torch(kernel, name, device, dtype, native):
    if not hasattr(native, "spins_clusters"):
        pytest.skip("the native module was built without cluster moves")
    base, n = TARGETS[name], 11
    beta = rng.uniform((n, 1), seed=9, device=device, dtype=dtype)[:, 0] + 0.5
    for target in (base, Tempered(base, beta)):
        state = begin(kernel, target, n, device=device, dtype=dtype)
        found, info = kernel.step(target, state, 36, thin=3)  # spins are set to length 1 twice
        assert not torch.equal(found.x, state.x)
        with pysamp.backend("torch"):
            expected, expected_info = kernel.step(target, state, 36, thin=3)
        assert same(found, expected)
        assert torch.equal(info.x, expected_info.x)
        assert torch.equal(info.log_prob, expected_info.log_prob)
        assert torch.equal(info.accept, expected_info.accept)
        sizes = (info.extra["cluster_size"], expected_info.extra["cluster_size"])
        torch.testing.assert_close(*sizes, rtol=1e-5, atol=0)  # sums of blocks of threads


@both
@pytest.mark.parametrize("name", ["ising", "xy", "phi4", "soft 3"])
def test_native_records_are_those_of_torch(kernel, name, dtype, native):
    if not hasattr(native, "spins_clusters"):
        pytest.skip("the native module was built without cluster moves")
    target = TARGETS[name]
    state = begin(kernel, target, dtype=dtype)
    found, info = kernel.measure(target, state, 12, thin=6, every=2)
    with pysamp.backend("torch"):
        expected, expected_info = kernel.measure(target, state, 12, thin=6, every=2)
    assert same(found, expected)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(info.x, expected_info.x, rtol=tolerance, atol=tolerance)


@both
@pytest.mark.parametrize("name", TARGETS)
def test_fused_steps_and_split_batches_change_nothing(kernel, name, dtype):
    target = TARGETS[name]
    state = begin(kernel, target, dtype=dtype)
    whole, info = kernel.step(target, state, 20, thin=5)
    single = state
    for k in range(20):
        single, _ = kernel.step(target, single)
        if k % 5 == 4:
            assert torch.equal(info.x[:, k // 5], single.x)
            assert torch.equal(info.log_prob[:, k // 5], single.log_prob)
    assert same(whole, single)
    parts = [(0, 4), (4, 7)]
    for first, n in parts:
        part, _ = kernel.step(target, begin(kernel, target, n, 3 + first, dtype=dtype), 20)
        assert torch.equal(part.x, whole.x[first : first + n])
        assert torch.equal(part.log_prob, whole.log_prob[first : first + n])
    torch.testing.assert_close(whole.log_prob, target.log_prob(whole.x), rtol=0, atol=0)
    assert torch.equal(info.accept, torch.ones_like(info.accept))


@both
@pytest.mark.parametrize("name", ["ising", "xy", "phi4", "soft 3"])
def test_each_row_at_its_own_temperature(kernel, name, dtype):
    """Tempering by a power of two is exact: rows equal those of a target with other couplings."""
    warm, cold = {
        "ising": (ON((6, 5), 1, 0.2), ON((6, 5), 1, 0.4)),
        "xy": (ON((5, 4), 2, 0.45), ON((5, 4), 2, 0.9)),
        # a reflection feels J alone
        "phi4": (Phi4((5, 6), 0.125, 0.1), Phi4((5, 6), 0.25, 0.1)),
        "soft 3": (None, ON.soft((3, 5), 3, -1.0, 2.0)),
    }[name]
    n = 8
    beta = torch.tensor([1.0, 0.5] * 4, dtype=dtype)
    state = begin(kernel, cold, n, dtype=dtype)
    found, _ = kernel.step(Counted(Tempered(cold, beta)), state, 7)
    plain, _ = kernel.step(cold, state, 7)
    assert torch.equal(found.x[0::2], plain.x[0::2])
    assert not torch.equal(found.x[1::2], plain.x[1::2])
    if warm is not None:
        other, _ = kernel.step(warm, state, 7)
        assert torch.equal(found.x[1::2], other.x[1::2])
    nested, _ = kernel.step(Tempered(Tempered(cold, 2.0), beta * 0.5), state, 7)
    assert torch.equal(nested.x, found.x)


@both
def test_no_bond_at_infinite_temperature(kernel):
    target = Tempered(TARGETS["ising"], 0.0)
    state = begin(kernel, target)
    new, info = kernel.step(target, state)
    v = 30
    torch.testing.assert_close(info.extra["cluster_size"], torch.full((11,), 1 / v))
    changed = (new.x != state.x).flatten(1).sum(1)
    assert bool((changed == 1).all()) if isinstance(kernel, Wolff) else bool((changed > 4).all())


@both
def test_one_cluster_at_zero_temperature(kernel):
    target = Tempered(TARGETS["ising"], 1e6)
    state = kernel.init(target, torch.ones(64, 6, 5, 1), seed=1)
    new, info = kernel.step(target, state)
    assert torch.equal(info.extra["cluster_size"], torch.ones(64))
    turned = float((new.x.flatten(1)[:, 0] == -1).double().mean())
    assert torch.equal(new.x, new.x[:, :1, :1].expand_as(new.x))
    assert turned == 1.0 if isinstance(kernel, Wolff) else 0.2 < turned < 0.8


@both
def test_lengths_are_set_back_after_one_step_in_16(kernel):
    target = TARGETS["heisenberg"]
    state = begin(kernel, target, dtype=F64)
    state = replace(state, x=state.x * 1.0004)

    def off(x):
        return float((x.square().sum(-1) - 1).abs().max())

    sets_back = [renormalises(step) for step in range(64)]
    before, _ = kernel.step(target, replace(state, step=sets_back.index(False)))
    after, _ = kernel.step(target, replace(state, step=sets_back.index(True)))
    assert sum(sets_back) == 4
    assert off(before.x) > 5e-4
    assert off(after.x) < 2e-6
    long, _ = kernel.step(TARGETS["xy"], begin(kernel, TARGETS["xy"]), 400)
    assert off(long.x) < 2e-6  # float32


@both
def test_records_are_means_over_windows(kernel, dtype):
    target = TARGETS["xy"]
    state = begin(kernel, target, dtype=dtype)
    end, info = kernel.measure(target, state, 24, thin=12, every=3)
    plain, fields = kernel.step(target, state, 24, thin=3)
    assert same(end, plain)
    assert info.x.shape == (11, 2, 9)
    assert torch.equal(info.log_prob, info.x[..., 0])
    records = target.record(fields.x.flatten(0, 1)).reshape(11, 2, 4, 9).double()
    expected = records.mean(2)
    expected[..., 1] = records[..., 0].var(2, unbiased=False)
    rounding = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(info.x.double(), expected, rtol=rounding, atol=rounding)
    _, info = kernel.measure(target, state, 4, thin=2, every=2)
    _, fields = kernel.step(target, state, 4, thin=2)
    records = target.record(fields.x.flatten(0, 1)).reshape(11, 2, 9)
    torch.testing.assert_close(info.x, records, rtol=1e-5, atol=1e-6)
    assert torch.equal(info.x[..., 1], torch.zeros(11, 2, dtype=dtype))


def test_the_variance_in_a_window_keeps_its_digits():
    """log p near 10⁶ in float32, with fluctuations of a few units."""
    log_prob = torch.tensor([1e6, 1e6 + 2, 1e6 + 4, 1e6 + 2])
    record = mean_record(torch.stack([log_prob, *[log_prob * 0] * 8], -1)[None], [1] * 4)
    assert record[0, :2].tolist() == [1e6 + 2, 2.0]


@both
def test_evaluations_are_counted(kernel):
    target = Counted(TARGETS["phi4"])
    state = begin(kernel, target, 4)
    assert target.counts.evaluations == 4
    kernel.step(target, state, 10)
    assert target.counts.evaluations == 8


# ---------------------------------------------------------------------------- bad input
def test_bad_input():
    kernel, ising = Wolff(), TARGETS["ising"]
    x = torch.zeros(2, 9)
    with pytest.raises(ValueError, match="without a field or a tilt, got Phi4Chain"):
        kernel.init(Phi4Chain(9, h=0.1), x, seed=1)
    with pytest.raises(ValueError, match="without a field or a tilt, got Tilted"):
        kernel.init(Tempered(Tilted(Phi4Chain(9), x[0], 1.0), 0.5), x, seed=1)
    with pytest.raises(ValueError, match="got GaussianMixture"):
        SwendsenWang().init(EightGaussians(), torch.zeros(2, 2), seed=1)
    with pytest.raises(ValueError, match=r"J ≥ 0, got J = -0\.5 of ON"):
        kernel.init(ON((4,), 1, -0.5), torch.ones(2, 4, 1), seed=1)
    with pytest.raises(ValueError, match=r"J ≥ 0, got J = -0\.4 of Phi4"):
        kernel.init(Phi4((4,), -0.2, 1.0), torch.ones(2, 4), seed=1)
    x = torch.ones(3, 6, 5, 1)
    x[1, 0, 2] = 0.5
    with pytest.raises(ValueError, match=r"got length 0\.5 at site 2 of chain 11"):
        kernel.init(ising, x, seed=1, first_chain=10)
    with pytest.raises(ValueError, match="no finite log_prob in 1 of 2 chains: chain 1"):
        kernel.init(Phi4((3,), 0.1, 0.1), torch.tensor([[0.0] * 3, [math.nan] * 3]), seed=1)
    state = begin(kernel, ising)
    with pytest.raises(ValueError, match="thin must divide n = 5"):
        kernel.step(ising, state, 5, thin=2)
    with pytest.raises(ValueError, match="n must be a positive number of steps, got 0"):
        kernel.measure(ising, state, 0, thin=1)
    for every in (0, 3, 2.0):
        with pytest.raises(ValueError, match=f"every must divide thin = 4, got every = {every}"):
            kernel.measure(ising, state, 8, thin=4, every=every)
    tempered = Tempered(ising, 0.5)
    with pytest.raises(ValueError, match="a target with a record, got Tempered"):
        kernel.measure(tempered, begin(kernel, tempered), 8, thin=4)
