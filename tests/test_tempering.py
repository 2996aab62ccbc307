"""Parallel tempering: known weights of modes from the wrong start, and an exact bookkeeping."""

import itertools
import math
from itertools import pairwise

import pytest
import torch

from pysamp import backend, rng
from pysamp.mcmc import (
    HMC,
    MALA,
    ULA,
    Cycle,
    HeatBath,
    Metropolis,
    OverRelaxation,
    ParallelTempering,
    SwendsenWang,
    Wolff,
    ladder_geometric,
    warm_up,
)
from pysamp.mcmc.base import Tunable, replace
from pysamp.mcmc.ladders import ladder_linear, respaced
from pysamp.mcmc.langevin import Multiplicative
from pysamp.target import Counted, FunctionTarget, Tempered
from pysamp.targets import GaussianMixture, Phi4, Phi4Chain, TwoModes
from pysamp.targets.gaussian import Gaussian
from pysamp.targets.on import ON

F64 = torch.float64
SE = 5.0


def start(n, event, seed=1, dtype=torch.float32):
    return rng.normal((n, *event), seed=seed, stream="start", dtype=dtype)


def z_of_chains(values, expected):
    """values (n_chains,), one independent number a chain."""
    values = values.double()
    return float((values.mean() - expected).abs() / (values.std() / len(values) ** 0.5))


def same(a, b):
    tensors = [(a.x, b.x), (a.log_prob, b.log_prob)]
    tensors += [(a.aux[key], b.aux[key]) for key in a.aux]
    if a.score is not None:
        tensors.append((a.score, b.score))
    return (
        a.step == b.step and a.aux.keys() == b.aux.keys() and all(map(torch.equal, *zip(*tensors)))
    )


# ---------------------------------------------------------------------------- right answers
@pytest.mark.parametrize("dim", [4, 8])
def test_two_modes_from_one_mode(dim):
    """All chains start in the lighter mode; plain MALA stays there, tempering finds 2/3 : 1/3."""
    target = TwoModes(dim)
    x = 4 / 3 + 0.05 * start(200, (dim,))
    plain = MALA(step_size=0.03)
    stuck, _ = plain.step(target, plain.init(target, x, seed=2), 500)
    assert float((target.mode(stuck.x) == 1).double().mean()) == 1.0

    # The hot rung must cross freely: all copies have to forget where they began.
    kernel = ParallelTempering(MALA(), n_rungs=6, beta_min=0.12 / dim, swap_every=4)
    kernel, state, report = warm_up(kernel, target, kernel.init(target, x, seed=2), 500)
    _, info = kernel.step(target, state, 800, thin=4)
    light = (target.mode(info.x.flatten(0, 1)) == 1).double().reshape(info.x.shape[:2])
    assert z_of_chains(light.mean(1), 1 / 3) < SE
    assert float(light.mean(1).std()) < 0.3  # every chain has been in both
    mean_square = info.x.double().square().mean((1, 2))
    assert z_of_chains(mean_square, 0.05 + (2 / 3) * (4 / 9) + (1 / 3) * (16 / 9)) < SE
    swaps = torch.tensor(report["swap_accept"])
    assert float(swaps.max() - swaps.min()) < 0.12  # the ladder was spaced for equal rates
    assert report["ladder"][0] == 1.0
    assert report["ladder"][-1] == pytest.approx(0.12 / dim)


def test_phi4_chain_from_one_phase():
    """d = 32 has the barrier of the d = 100 chain of the papers; all start in the rare phase."""
    target = Phi4Chain(n_sites=32, a=0.1, beta=20.0, h=0.0025)
    n = 128
    x = 1 + 0.05 * start(n, (32,))
    kernel = ParallelTempering(HMC(n_leapfrog=40), n_rungs=6, beta_min=0.2)
    kernel, state, _ = warm_up(kernel, target, kernel.init(target, x, seed=3), 400)
    state, info = kernel.step(target, state, 1000, thin=4)
    known, mid = target.exact, info.x[:, :, 16].double()
    assert z_of_chains((mid > 0).double().mean(1), known.weight_plus) < SE
    assert z_of_chains((mid**2).mean(1), known.mid_square) < SE
    assert z_of_chains(-info.log_prob.double().mean(1), known.energy) < SE
    error = float((mid > 0).double().mean(1).std()) / math.sqrt(n)
    assert error < 0.03  # against a weight of 0.32: neither all chains in one phase nor a coin
    assert float(info.extra["round_trip_rate"].mean()) > 1e-3
    assert float(state.aux["round_trips"].sum()) > 100


@pytest.mark.parametrize(
    "inner", [Metropolis(moves="site"), MALA(), HMC(n_leapfrog=3)], ids=["sites", "mala", "hmc"]
)
def test_hot_rungs_sample_their_own_powers(inner):
    """N(0, 1)^β is N(0, 1/β): the variance on every rung, not only on the cold one."""
    target = Phi4((6,), 0.0, 0.0)  # κ = λ = 0: independent sites of density e^{−φ²}
    kernel = ParallelTempering(inner, betas=(1.0, 0.6, 0.3, 0.1), adapt_ladder=False)
    x = start(300, (6,), dtype=F64) * math.sqrt(0.5)
    kernel, state, _ = warm_up(kernel, target, kernel.init(target, x, seed=4), 200)
    squares = torch.zeros(300, 4, dtype=F64)
    for _ in range(40):
        state, _ = kernel.step(target, state, 3)
        at = torch.argsort(state.aux["rung"], dim=1)  # the walker on each rung
        fields = state.aux["x"].gather(1, at[:, :, None].expand(-1, -1, 6))
        squares += (fields**2).mean(2) / 40
    for k, beta in enumerate(kernel.betas):
        assert z_of_chains(squares[:, k], 0.5 / beta) < SE


def test_swap_acceptance_of_a_gaussian_is_known():
    """E min(1, e^{(β₀ − β₁)(U₀ − U₁)}) for U_i ~ Γ(d/2, β_i) by quadrature over both energies."""
    dim, betas = 4, (1.0, 0.4)
    target = GaussianMixture(torch.zeros(1, dim), torch.ones(1))
    u = torch.linspace(0, 60, 3001, dtype=F64)[1:]
    cold, hot = (u ** (dim / 2 - 1) * torch.exp(-b * u) for b in betas)
    ratio = torch.exp(((betas[0] - betas[1]) * (u[:, None] - u[None, :])).clamp(max=0.0))
    expected = float(cold @ (ratio @ hot) / (cold.sum() * hot.sum()))
    kernel = ParallelTempering(MALA(step_size=torch.tensor([0.5, 1.2])), betas=betas)
    state = kernel.init(target, target.sample(4000, seed=1, dtype=F64), seed=5)
    state, _ = kernel.step(target, state, 40)
    _, info = kernel.step(target, state, 20)
    assert z_of_chains(info.extra["swap_accept"][:, 0], expected) < SE


WITHOUT_SCALE = {
    "heat bath": HeatBath(),
    "wolff": Wolff(),
    "sw": SwendsenWang(),
    "cycle": Cycle(HeatBath(), Wolff()),
}


@pytest.mark.parametrize("inner", WITHOUT_SCALE)
def test_around_a_kernel_without_a_scale(inner):
    """The 4 × 4 Ising model on each rung by enumeration, from the ordered state."""
    target, betas = ON((4, 4), 1, 0.6), (1.0, 0.7, 0.4)
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=16)), dtype=F64)
    log_prob = target.log_prob(every.reshape(-1, 4, 4, 1))
    kernel = ParallelTempering(WITHOUT_SCALE[inner], betas=betas, swap_every=2)
    assert not isinstance(kernel, Tunable)
    state = kernel.init(target, torch.ones(1000, 4, 4, 1, dtype=F64), seed=3)
    same_kernel, state, report = warm_up(kernel, target, state, 20)
    assert same_kernel is kernel
    assert "scale" not in report
    state, info = kernel.step(target, state, 20, thin=20)
    assert float(info.extra["swap_accept"].mean()) > 0.1
    assert bool((info.accept == 1).all())
    assert int(state.aux["round_trips"].sum()) > 0
    for k, beta in enumerate(betas):
        p = torch.softmax(beta * log_prob, 0)
        found = state.aux["log_prob"].gather(
            1, torch.argsort(state.aux["rung"], dim=1)[:, k : k + 1]
        )
        assert z_of_chains(found[:, 0], float(p @ log_prob)) < SE
        assert z_of_chains(found[:, 0] ** 2, float(p @ log_prob**2)) < SE
    assert z_of_chains(state.x.mean((1, 2, 3)), 0.0) < SE
    torch.testing.assert_close(state.log_prob, target.log_prob(state.x))


# ---------------------------------------------------------------------------- a ladder in r
SOFT = ON.soft((2,), 1, -3.0, 1.5)  # −log p = (φ_0 − φ_1)² + Σ [½ r φ² + (u/4) φ⁴]
RS = (-3.0, -1.8, -0.5, 1.0)
IN_R = {
    "sites": Metropolis(moves="site", width=1.5),
    "mala": MALA(step_size=torch.tensor([0.05, 0.08, 0.15, 0.25])),
    "hmc": HMC(step_size=0.3, n_leapfrog=4),
    "heat bath": HeatBath(),
    "cycle": Cycle(Metropolis(moves="site", width=1.5), HeatBath()),
}


def moments(r):
    """⟨φ_0²⟩, ⟨φ_0 φ_1⟩, ⟨log p⟩ of the target and ⟨½ Σ φ²⟩, at this r, by quadrature."""
    axis = torch.linspace(-5, 5, 601, dtype=F64)
    a, b = axis[:, None], axis[None, :]

    def at(r):
        return -((a - b) ** 2) - sum(r / 2 * v**2 + 1.5 / 4 * v**4 for v in (a, b))

    p = torch.softmax(at(r).flatten(), 0).reshape(601, 601)
    return [float((p * f).sum()) for f in (a**2 + 0 * b, a * b, at(RS[0]), (a**2 + b**2) / 2)]


@pytest.mark.parametrize("inner", IN_R)
def test_every_rung_of_a_ladder_in_r(inner):
    """All copies start in one phase; the barrier of r₀ is crossed where r > 0."""
    kernel, n = ParallelTempering(IN_R[inner], r=RS, swap_every=2), 1500
    start_x = 1.5 + 0.1 * start(n, (2, 1), dtype=F64)
    state = kernel.init(SOFT, start_x, seed=11)
    state, info = kernel.step(SOFT, state, 150)
    assert float(info.extra["swap_accept"].mean(0).min()) > 0.3
    assert float(info.extra["round_trip_rate"].mean()) > 0.005
    assert int(state.aux["round_trips"].sum()) > n
    square, product, log_prob, _ = moments(RS[0])
    assert z_of_chains(state.x[:, 0, 0], 0.0) < SE
    assert z_of_chains(state.x[:, 0, 0] ** 2, square) < SE
    assert z_of_chains(state.x[:, 0, 0] * state.x[:, 1, 0], product) < SE
    assert z_of_chains(state.log_prob, log_prob) < SE
    at = torch.argsort(state.aux["rung"], dim=1)
    fields = state.aux["x"].gather(1, at[:, :, None, None].expand(-1, -1, 2, 1))
    for k, r in enumerate(RS):
        assert z_of_chains(fields[:, k].square().sum((1, 2)) / 2, moments(r)[3]) < SE


def test_swap_acceptance_in_r_is_known():
    """E min(1, e^{(r₁ − r₀)(Q₁ − Q₀)}), Q = ½ φ², by quadrature over both copies of a free field."""
    target, r = ON.soft((2,), 1, 1.0, 0.0), (1.0, 3.0)
    # With φ_0 ± φ_1 in polar coordinates, −log p = r Q + 4 Q sin²α, of the measure dQ dα.
    q = torch.linspace(0, 40, 4001, dtype=F64)[1:] - 0.005
    angle = (torch.arange(200, dtype=F64) + 0.5) * (math.pi / 400)
    weight = [torch.exp(-q[:, None] * (v + 4 * angle.sin() ** 2)).sum(1) for v in r]
    weight = [w / w.sum() for w in weight]
    ratio = torch.exp(((r[1] - r[0]) * (q[None, :] - q[:, None])).clamp(max=0.0))
    expected = float(weight[0] @ (ratio @ weight[1]))
    kernel = ParallelTempering(HMC(step_size=torch.tensor([0.5, 0.4]), n_leapfrog=3), r=r)
    state = kernel.init(target, start(4000, (2, 1), dtype=F64), seed=12)
    state, _ = kernel.step(target, state, 30)
    _, info = kernel.step(target, state, 10)
    assert z_of_chains(info.extra["swap_accept"][:, 0], expected) < SE


@pytest.mark.parametrize("inner", IN_R)
def test_the_state_of_a_ladder_in_r(inner, dtype):
    """What is kept of a walker belongs to its field and its r; fusing, splitting, torch: no change."""
    target, kernel = ON.soft((3, 2), 2, -2.0, 1.0), ParallelTempering(IN_R[inner], r=(-2, -1, 0, 1))
    x = start(9, (3, 2, 2), dtype=dtype)
    begin = kernel.init(target, x, seed=6, first_chain=3)
    state, info = kernel.step(target, begin, 6, thin=2)
    aux, rows = state.aux, torch.arange(9)
    assert int((aux["rung"] != torch.arange(4)).sum()) > 0
    assert torch.equal(aux["ladder"], torch.tensor([-2.0, -1, 0, 1], dtype=dtype).expand(9, 4))
    cold = (aux["rung"] == 0).nonzero()[:, 1]
    assert torch.equal(state.x, aux["x"][rows, cold])
    assert torch.equal(state.log_prob, aux["log_prob"][rows, cold])
    fields = aux["x"].flatten(0, 1)
    log_prob, score = target.log_prob_and_score(fields)
    torch.testing.assert_close(aux["log_prob"].flatten(), log_prob)
    if "score" in aux:
        shift = aux["ladder"].gather(1, aux["rung"]).reshape(-1, 1, 1, 1) + 2
        torch.testing.assert_close(aux["score"].flatten(0, 1), score - shift * fields)

    single, kept = begin, []
    for i in range(6):
        single, _ = kernel.step(target, single)
        if i % 2:
            kept.append(single.x)
    assert same(state, single)
    assert torch.equal(info.x, torch.stack(kept, 1))
    parts = [kernel.init(target, x[a:b], seed=6, first_chain=3 + a) for a, b in ((0, 4), (4, 9))]
    parts = [kernel.step(target, part, 6)[0] for part in parts]
    assert all(torch.equal(aux[key], torch.cat([p.aux[key] for p in parts])) for key in aux)
    with backend("torch"):
        other, _ = kernel.step(target, kernel.init(target, x, seed=6, first_chain=3), 6, thin=2)
    assert same(state, other)


def test_warm_up_in_r():
    """A scale for each rung; rungs move only if asked to, then to r equidistant in the barrier."""
    kernel = ParallelTempering(MALA(), r=(-3.0, -2.9, 1.0))
    begin = kernel.init(SOFT, start(40, (2, 1)), seed=1)
    _, state, report = warm_up(kernel, SOFT, begin, 90)
    assert report["ladder"] == pytest.approx([-3.0, -2.9, 1.0])
    assert len(report["scale"]) == 3
    moving = replace(kernel, adapt_ladder=True)
    _, state, report = warm_up(moving, SOFT, begin, 90)
    assert -2.5 < report["ladder"][1] < -0.5
    assert report["ladder"][::2] == [-3.0, 1.0]
    respaced_r = respaced([-3.0, 0.0, 1.0], [0.5, 0.9], powers=False)
    assert respaced_r == pytest.approx((-3.0, -1.2, 1.0))  # barrier 0, 0.5, 0.6: half way at 0.3
    _, score = SOFT.log_prob_and_score(state.aux["x"].flatten(0, 1))
    shift = state.aux["ladder"].gather(1, state.aux["rung"]).reshape(-1, 1, 1) + 3.0
    found = state.aux["score"].flatten(0, 1)
    torch.testing.assert_close(
        found, score - shift * state.aux["x"].flatten(0, 1), atol=1e-4, rtol=1e-4
    )


def test_overflows_count_also_at_negative_r():
    kernel = ParallelTempering(MALA(step_size=1e30), r=(-3.0, -2.0))
    _, info = kernel.step(SOFT, kernel.init(SOFT, start(6, (2, 1)), seed=2), 10)
    assert bool((info.extra["nonfinite"] == 20).all())


# ---------------------------------------------------------------------------- a bridge to a Gaussian
LAMS = (1.0, 0.6, 0.3, 0.1, 0.0)
REFERENCES = {
    "one variance": Gaussian(torch.tensor([0.5, 0.0]), 4.0),
    "matrix": Gaussian(torch.tensor([0.5, 0.0]), torch.tensor([[4.0, 1.0], [1.0, 3.0]])),
}
ON_BRIDGE = {
    "mala": MALA(step_size=torch.tensor([0.1, 0.15, 0.3, 0.6, 1.0])),
    "hmc": HMC(step_size=torch.tensor([0.3, 0.4, 0.5, 0.8, 1.0]), n_leapfrog=3),
    "rwm": Metropolis(width=1.0, moves="all"),
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("inner", ON_BRIDGE)
def test_every_rung_of_a_bridge(inner, reference):
    """Precisions mix: from N(m, 0.5) to the reference all rungs are Gaussians that are known."""
    ref, mean, n = REFERENCES[reference], torch.tensor([-1.0, 1.0], dtype=F64), 2000
    target = GaussianMixture(mean[None], torch.tensor([0.5]))
    kernel = ParallelTempering(ON_BRIDGE[inner], betas=LAMS, reference=ref, swap_every=2)
    state = kernel.init(target, start(n, (2,), dtype=F64), seed=21)
    state, info = kernel.step(target, state, 25)
    assert float(info.extra["swap_accept"].mean(0).min()) > 0.2
    assert int(state.aux["round_trips"].sum()) > n / 10
    assert bool((info.extra["nonfinite"] == 0).all())
    at = torch.argsort(state.aux["rung"], dim=1)
    fields = state.aux["x"].gather(1, at[:, :, None].expand(-1, -1, 2))
    p, q = 2 * torch.eye(2, dtype=F64), ref.precision
    for k, lam in enumerate(LAMS):
        covariance = torch.linalg.inv(lam * p + (1 - lam) * q)
        centre = covariance @ (lam * p @ mean + (1 - lam) * q @ ref.mean)
        for i in range(2):
            assert z_of_chains(fields[:, k, i], float(centre[i])) < SE
            square = float(covariance[i, i] + centre[i] ** 2)
            assert z_of_chains(fields[:, k, i] ** 2, square) < SE
        product = float(covariance[0, 1] + centre[0] * centre[1])
        assert z_of_chains(fields[:, k, 0] * fields[:, k, 1], product) < SE
    torch.testing.assert_close(state.log_prob, target.log_prob(state.x))


def test_two_modes_by_a_bridge():
    """All chains start in the lighter mode; the ladder is spaced in the warm-up, its ends stay."""
    target, n = TwoModes(4), 200
    reference = Gaussian(torch.zeros(4), 1.5)
    kernel = ParallelTempering(MALA(), n_rungs=8, reference=reference, swap_every=4)
    assert kernel.ladder() == ladder_linear(8) == tuple(k / 7 for k in range(7, -1, -1))
    x = 4 / 3 + 0.05 * start(n, (4,))
    kernel, state, report = warm_up(kernel, target, kernel.init(target, x, seed=2), 300)
    assert (report["ladder"][0], report["ladder"][-1]) == (1.0, 0.0)
    assert report["ladder"][1] < 0.7 < kernel.ladder()[1]
    swaps = torch.tensor(report["swap_accept"])
    assert float(swaps.max() - swaps.min()) < 0.15
    _, info = kernel.step(target, state, 400, thin=4)
    light = (target.mode(info.x.flatten(0, 1)) == 1).double().reshape(info.x.shape[:2])
    assert z_of_chains(light.mean(1), 1 / 3) < SE
    assert float(light.mean(1).std()) < 0.3  # every chain has been in both


@pytest.mark.parametrize("inner", ON_BRIDGE)
def test_the_state_of_a_bridge(inner, dtype):
    """What is kept of a walker belongs to its x and λ; fusing, splitting and torch change nothing."""
    target, reference = Phi4Chain(5, beta=4.0), Gaussian(torch.full((5,), 0.2), 0.8)
    kernel = ParallelTempering(ON_BRIDGE[inner], betas=LAMS, reference=reference, swap_every=2)
    if inner != "rwm":
        scale = torch.linspace(0.02, 0.3, 5) if inner == "mala" else torch.linspace(0.1, 0.6, 5)
        kernel = replace(kernel, kernel=ON_BRIDGE[inner].with_scale(scale))
    x = start(9, (5,), dtype=dtype)
    begin = kernel.init(target, x, seed=6, first_chain=3)
    state, info = kernel.step(target, begin, 6, thin=2)
    aux, rows = state.aux, torch.arange(9)
    assert int((aux["rung"] != torch.arange(5)).sum()) > 0
    cold = (aux["rung"] == 0).nonzero()[:, 1]
    assert torch.equal(state.x, aux["x"][rows, cold])
    assert torch.equal(state.log_prob, aux["log_prob"][rows, cold])
    fields, lam = aux["x"].flatten(0, 1), aux["ladder"].gather(1, aux["rung"]).reshape(-1, 1)
    log_prob, score = target.log_prob_and_score(fields)
    torch.testing.assert_close(aux["log_prob"].flatten(), log_prob)
    if "score" in aux:
        pull = reference.offset_and_pull(fields)[1]
        torch.testing.assert_close(aux["score"].flatten(0, 1), lam * score - (1 - lam) * pull)

    single, kept = begin, []
    for i in range(6):
        single, _ = kernel.step(target, single)
        if i % 2:
            kept.append(single.x)
    assert same(state, single)
    assert torch.equal(info.x, torch.stack(kept, 1))
    parts = [kernel.init(target, x[a:b], seed=6, first_chain=3 + a) for a, b in ((0, 4), (4, 9))]
    parts = [kernel.step(target, part, 6)[0] for part in parts]
    assert all(torch.equal(aux[key], torch.cat([p.aux[key] for p in parts])) for key in aux)
    with backend("torch"):
        other, _ = kernel.step(target, kernel.init(target, x, seed=6, first_chain=3), 6, thin=2)
    assert same(state, other)
    moved = kernel.respace(state, torch.tensor([0.1, 0.9, 0.9, 0.9]))
    assert float(moved.aux["ladder"][0, 1]) > 0.8
    if "score" in aux:
        lam = moved.aux["ladder"].gather(1, aux["rung"]).reshape(-1, 1)
        expected = lam * score - (1 - lam) * pull
        torch.testing.assert_close(moved.aux["score"].flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_the_rung_of_the_reference_is_drawn():
    """After a step whose pairs leave that rung alone, its walkers are draws of the reference."""
    reference = REFERENCES["matrix"]
    kernel = ParallelTempering(MALA(0.1), betas=(1.0, 0.5, 0.0), reference=reference)
    state = kernel.init(TwoModes(2), start(8, (2,)), seed=3)
    state, _ = kernel.step(TwoModes(2), state)  # pairs (0, 1) have their turn
    z = rng.normal((8, 2), seed=3, stream="importance", step=0)
    assert torch.equal(state.aux["x"][:, 2], reference.place(z))
    open_end = ParallelTempering(MALA(0.1), betas=(1.0, 0.5, 0.2), reference=reference)
    state, _ = open_end.step(TwoModes(2), open_end.init(TwoModes(2), start(8, (2,)), seed=3))
    assert not torch.equal(state.aux["x"][:, 2], reference.place(z))


def test_a_support_that_the_reference_leaves():
    """Half the plane under a Gaussian of the plane: draws outside never reach the other rungs."""

    def log_prob(x):
        return torch.where(x[:, 0] > 0, -0.5 * (x**2).sum(1), -torch.inf)

    target, reference = FunctionTarget(log_prob, (2,)), Gaussian(torch.zeros(2), 2.0)
    kernel = ParallelTempering(
        Metropolis(width=1.5, moves="all"), betas=(1.0, 0.5, 0.0), reference=reference
    )
    x = start(3000, (2,), dtype=F64).abs()
    state, info = kernel.step(target, kernel.init(target, x, seed=2), 30)
    assert bool((state.x[:, 0] > 0).all())
    assert z_of_chains(state.x[:, 0], math.sqrt(2 / math.pi)) < SE
    assert z_of_chains(state.x[:, 1] ** 2, 1.0) < SE
    assert 0.2 < float(info.extra["swap_accept"].mean(0).min()) < 0.6
    hot = state.aux["x"].gather(
        1, torch.argsort(state.aux["rung"], 1)[:, 2:, None].expand(-1, -1, 2)
    )
    assert z_of_chains(hot[:, 0, 0], 0.0) < SE


@pytest.mark.slow
def test_error_of_a_bridge_on_two_far_modes():
    """Grenioux et al. 2025 (arXiv 2504.08916), d = 4, a = 2.875: error below 3 % with 32 rungs."""
    v = torch.linspace(0.01, 0.2, 4, dtype=F64)
    means = 2.875 * torch.stack([-torch.ones(4, dtype=F64), torch.ones(4, dtype=F64)])
    target = GaussianMixture(means, torch.stack([v, v.flip(0)]), torch.tensor([2.0, 1.0]))
    spread = torch.diag(2 / 3 * v + 1 / 3 * v.flip(0)) + 8 / 9 * 2.875**2
    reference = Gaussian(-means[1] / 3, spread)
    kernel = ParallelTempering(MALA(), n_rungs=32, reference=reference, swap_every=8)
    x = means[0] + 0.1 * start(256, (4,), dtype=F64)
    kernel, state, _ = warm_up(kernel, target, kernel.init(target, x.float(), seed=1), 512)
    _, info = kernel.step(target, state, 32, thin=1)
    heavy = float((target.mode(info.x.flatten(0, 1)) == 0).double().mean())
    assert 100 * abs(heavy - 2 / 3) <= 3


# ---------------------------------------------------------------------------- bookkeeping
TARGETS = {
    "phi4": Phi4Chain(12, beta=4.0),
    "lattice": Phi4((3, 4), 0.2, 0.5),
    "mixture": TwoModes(3, variance=0.3),
    "function": FunctionTarget(lambda x: -(x**4).sum((1, 2)) + x[:, 0, 0], (2, 2)),
}
INNER = {
    "mala": MALA(step_size=0.01),
    "hmc": HMC(step_size=torch.tensor([0.05, 0.07, 0.1]), n_leapfrog=3),
    "rwm": Metropolis(width=0.2, moves="all"),
    "sites": Metropolis(width=0.5),
}


def made(inner, swap_every=2):
    return ParallelTempering(INNER[inner], betas=(1.0, 0.7, 0.4), swap_every=swap_every)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("inner", INNER)
def test_fused_steps_and_split_batches_change_nothing(name, inner, dtype):
    target, kernel = TARGETS[name], made(inner)
    x = start(9, target.event_shape, dtype=dtype)
    begin = kernel.init(target, x, seed=6, first_chain=3)
    state, info = kernel.step(target, begin, 6, thin=2)
    assert bool((state.x != x).flatten(1).any(1).any())

    single, kept = begin, []
    for i in range(6):
        single, _ = kernel.step(target, single)
        if i % 2:
            kept.append((single.x, single.log_prob))
    assert same(state, single)
    assert torch.equal(info.x, torch.stack([k[0] for k in kept], 1))
    assert torch.equal(info.log_prob, torch.stack([k[1] for k in kept], 1))

    parts = [kernel.init(target, x[a:b], seed=6, first_chain=3 + a) for a, b in ((0, 4), (4, 9))]
    parts = [kernel.step(target, part, 6)[0] for part in parts]
    for key, value in state.aux.items():
        joined = torch.cat([part.aux[key] for part in parts])
        if name == "mixture":  # native mixtures agree to rounding between batches
            torch.testing.assert_close(joined, value)
        else:
            assert torch.equal(joined, value)


@pytest.mark.parametrize("name", ["phi4", "lattice"])
@pytest.mark.parametrize("inner", INNER)
def test_native_and_torch_agree_to_the_last_bit(name, inner, dtype):
    target, kernel = TARGETS[name], made(inner)
    x = start(7, target.event_shape, dtype=dtype)
    results = []
    for way in ("native", "torch"):
        with backend(way):
            results.append(kernel.step(target, kernel.init(target, x, seed=7), 12, thin=3))
    (a, info_a), (b, info_b) = results
    assert same(a, b)
    assert torch.equal(info_a.x, info_b.x)
    assert torch.equal(info_a.extra["swap_accept"], info_b.extra["swap_accept"])
    assert int((a.aux["rung"] != torch.arange(3)).sum()) > 0


@pytest.mark.parametrize("inner", ["mala", "rwm"])
def test_state_is_consistent(inner):
    """The cold row is the walker on rung 0; what is stored of a walker belongs to its x and β."""
    target, kernel = TARGETS["phi4"], made(inner)
    state = kernel.init(target, start(50, (12,), dtype=F64), seed=8)
    state, info = kernel.step(target, state, 30)
    aux, rung = state.aux, state.aux["rung"]
    assert torch.equal(rung.sort(1).values, torch.arange(3).expand(50, 3))
    cold = (rung == 0).nonzero()[:, 1]
    rows = torch.arange(50)
    assert torch.equal(state.x, aux["x"][rows, cold])
    assert torch.equal(state.log_prob, aux["log_prob"][rows, cold])
    log_prob, score = target.log_prob_and_score(aux["x"].flatten(0, 1))
    torch.testing.assert_close(aux["log_prob"].flatten(), log_prob, rtol=1e-12, atol=1e-11)
    if inner == "mala":
        beta = aux["ladder"].gather(1, rung).reshape(-1, 1)
        torch.testing.assert_close(aux["score"].flatten(0, 1), beta * score, rtol=1e-12, atol=1e-11)
        assert torch.equal(state.score, aux["score"][rows, cold])
    torch.testing.assert_close(info.accept, info.extra["rung_accept"][:, 0])
    assert info.extra["swap_accept"].shape == (50, 2)
    assert bool((info.extra["swap_accept"].mean(0) > 0.05).all())


def test_almost_equal_powers_always_swap():
    """With β equal but for a hair each swap is accepted, and walkers march through the ladder."""
    betas = tuple(1 - 1e-12 * k for k in range(4))
    kernel = ParallelTempering(MALA(step_size=0.01), betas=betas)
    target = TARGETS["phi4"]
    state = kernel.init(target, start(5, (12,), dtype=F64), seed=9)
    expected = torch.arange(4)
    for step in range(8):
        state, info = kernel.step(target, state)
        pairs = [(0, 1), (2, 3)] if step % 2 == 0 else [(1, 2)]
        for i, j in pairs:
            expected = torch.where(expected == i, j, torch.where(expected == j, i, expected))
        assert torch.equal(state.aux["rung"], expected.expand(5, 4))
        torch.testing.assert_close(info.extra["swap_accept"], torch.ones(5, 3, dtype=F64))
    # Deterministic even–odd swaps: after K steps every walker has crossed, after 2K it is back.
    assert torch.equal(expected, torch.arange(4))
    assert bool((state.aux["round_trips"] >= 1).all())


def test_swaps_that_lower_the_weight_too_much_are_refused():
    """A hot walker of log p = −1000 beside a cold one of 0: ln a = −500."""
    target = GaussianMixture(torch.zeros(1, 2), torch.ones(1))
    kernel = ParallelTempering(Metropolis(width=1e-6, moves="all"), betas=(1.0, 0.5))
    state = kernel.init(target, torch.zeros(6, 2, dtype=F64), seed=1)
    aux = dict(state.aux)
    far = torch.tensor([math.sqrt(2000.0), 0.0], dtype=F64)
    aux["x"] = torch.stack([torch.zeros(6, 2, dtype=F64), far.expand(6, 2)], 1)
    aux["log_prob"] = target.log_prob(aux["x"].flatten(0, 1)).reshape(6, 2)
    state, info = kernel.step(target, replace(state, aux=aux), 10)
    assert torch.equal(state.aux["rung"], torch.arange(2).expand(6, 2))
    assert float(info.extra["swap_accept"].max()) < 1e-200
    # The other way round the swap is certain.
    aux["x"], aux["log_prob"] = aux["x"].flip(1), aux["log_prob"].flip(1)
    state, _ = kernel.step(
        target, replace(state, aux={**aux, "rung": torch.arange(2).repeat(6, 1)}, step=0)
    )
    assert torch.equal(state.aux["rung"], torch.tensor([1, 0]).expand(6, 2))


def test_flat_rung_on_a_bounded_support():
    """β = 0 is the uniform law on the box: E x² = 1/3 there, while the cold rung keeps its own."""

    def log_prob(x):
        inside = (x.abs() <= 1).all(1)
        return torch.where(inside, 3 * x[:, 0], -torch.inf)

    target = FunctionTarget(log_prob, (2,))
    kernel = ParallelTempering(Metropolis(width=0.8, moves="all"), betas=(1.0, 0.4, 0.0))
    x = 2 * rng.uniform((2000, 2), seed=3, stream="user", dtype=F64) - 1
    state, _ = kernel.step(target, kernel.init(target, x, seed=2), 60)
    at = torch.argsort(state.aux["rung"], dim=1)
    by_rung = state.aux["x"].gather(1, at[:, :, None].expand(-1, -1, 2))
    assert z_of_chains(by_rung[:, 2, 0] ** 2, 1 / 3) < SE
    assert z_of_chains(by_rung[:, 2, 0], 0.0) < SE
    cold = 1 / math.tanh(3.0) - 1 / 3  # mean of e^{3x} on [−1, 1]
    assert z_of_chains(state.x[:, 0], cold) < SE
    assert bool((state.x.abs() <= 1).all())


@pytest.mark.parametrize("hottest", [0.0, 0.1])
def test_overflows_count_where_the_target_is_felt(hottest):
    """φ⁴ overflows 1e30 from the middle: a fault of the proposals, but not where all is flat."""
    target, n = TARGETS["phi4"], 40
    width = torch.tensor([0.1, 0.1, 1e30])
    kernel = ParallelTempering(Metropolis(width=width, moves="all"), (1.0, 0.5, hottest))
    _, info = kernel.step(target, kernel.init(target, start(6, (12,)), seed=2), n)
    counts = info.extra["nonfinite"]
    assert counts.shape == (6,)
    assert bool((counts > 0.9 * n).all() if hottest else (counts == 0).all())


def test_evaluations_are_counted():
    target, kernel = Counted(TARGETS["phi4"]), made("mala", swap_every=3)
    state = kernel.init(target, start(4, (12,)), seed=1)
    assert target.counts.evaluations == 4
    kernel.step(target, state, 5)
    assert target.counts.evaluations == 4 + 4 * 3 * 3 * 5


# ---------------------------------------------------------------------------- the ladder
def test_geometric_ladder():
    ladder = ladder_geometric(5, 0.0081)
    assert ladder == pytest.approx((1.0, 0.3, 0.09, 0.027, 0.0081))
    assert ParallelTempering(MALA(), n_rungs=5, beta_min=0.0081).ladder() == ladder


def test_respacing_equalises_a_known_barrier():
    """Rejection λ |Δ ln β| with λ = 0.2 above β = 0.3 and 0.05 below: the spacing is known."""
    ladder = ladder_geometric(9, 0.09)

    def barrier(beta):
        return 0.2 * min(-math.log(beta), -math.log(0.3)) + 0.05 * max(0, math.log(0.3 / beta))

    steps = [barrier(b) - barrier(a) for a, b in pairwise(ladder)]
    new = respaced(ladder, [1 - s for s in steps])
    found = [barrier(b) - barrier(a) for a, b in pairwise(new)]
    assert found == pytest.approx([barrier(0.09) / 8] * 8, rel=1e-9)
    assert (new[0], new[-1]) == (1.0, 0.09)
    assert respaced(new, [1 - f for f in found]) == pytest.approx(new)
    with pytest.raises(ValueError, match="swap_accept must have 8 entries"):
        respaced(ladder, [0.5])


def test_a_given_ladder_stays_and_a_default_one_moves():
    target = TARGETS["phi4"]
    x = start(30, (12,))
    given = ParallelTempering(MALA(), betas=(1.0, 0.9, 0.1))
    _, state, report = warm_up(given, target, given.init(target, x, seed=1), 120)
    assert report["ladder"] == pytest.approx([1.0, 0.9, 0.1])
    moving = replace(given, adapt_ladder=True)
    _, state, report = warm_up(moving, target, moving.init(target, x, seed=1), 120)
    assert report["ladder"][1] < 0.6
    assert torch.equal(state.aux["ladder"], state.aux["ladder"][:1].expand(30, 3))
    fixed = ParallelTempering(MALA(step_size=0.02), betas=(1.0, 0.9, 0.1), adapt_ladder=True)
    same_kernel, state, report = warm_up(fixed, target, fixed.init(target, x, seed=1), 120)
    assert same_kernel is fixed
    assert report["ladder"][1] < 0.6


# ---------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"betas": (1.0, 0.5, 0.5)}, ValueError, "must decrease .* 0.5, 0.5"),
        ({"betas": (0.9, 0.5)}, ValueError, "must start at 1, got 0.9"),
        ({"betas": (1.0, 0.5, -0.1)}, ValueError, "not be negative"),
        ({"betas": (1.0, math.nan)}, ValueError, "must decrease"),
        ({"betas": (1.0,)}, ValueError, "at least 2"),
        ({"n_rungs": 1}, ValueError, "at least 2 rungs, got 1"),
        ({"beta_min": 0.0}, ValueError, r"beta_min must lie in \(0, 1\), got 0.0"),
        ({"swap_every": 0}, ValueError, "swap_every must be at least 1, got 0"),
        ({"swap_every": 1.5}, TypeError, "swap_every must be an int, got 1.5"),
        ({"kernel": MALA}, TypeError, "kernel must be a Kernel"),
        ({"kernel": "mala"}, TypeError, "kernel must be a Kernel, got 'mala'"),
        ({"kernel": ULA(step_size=0.1)}, TypeError, "invariant, got ULA"),
        ({"kernel": Cycle(HeatBath(), ULA(0.1))}, TypeError, "invariant, got ULA"),
        ({"kernel": ParallelTempering(MALA())}, TypeError, "must not be a ParallelTempering"),
        ({"kernel": MALA(0.1, adapt=Multiplicative())}, ValueError, "adapt=Multiplicative"),
        ({"r": (0.0, 1.0), "betas": (1.0, 0.5)}, ValueError, "betas and r exclude each other"),
        ({"r": (0.0, 1.0, 1.0)}, ValueError, r"r must be finite and increase, got \(0.0, 1.0, 1.0\)"),
        ({"r": (0.0, math.inf)}, ValueError, "r must be finite and increase"),
        ({"r": (0.0,)}, ValueError, "r must be a sequence of at least 2"),
        ({"reference": 1.0}, TypeError, "reference must be a Gaussian, got float"),
        ({"reference": Gaussian(torch.zeros(2), 1.0), "r": (0.0, 1.0)}, ValueError,
         r"reference and r exclude each other, got r=\(0.0, 1.0\)"),
        ({"reference": Gaussian(torch.zeros(2), 1.0), "n_rungs": 1}, ValueError, "at least 2 rungs"),
    ],
)  # fmt: skip
def test_bad_input(arguments, error, text):
    with pytest.raises(error, match=text):
        ParallelTempering(**{"kernel": MALA(), **arguments})


def test_bad_input_of_steps():
    target = TARGETS["phi4"]
    wrong = ParallelTempering(MALA(step_size=torch.tensor([0.1, 0.2])), betas=(1.0, 0.5, 0.1))
    state = wrong.init(target, start(4, (12,)), seed=1)
    with pytest.raises(ValueError, match=r"one per rung \(3,\) or one per chain and rung \(4, 3\)"):
        wrong.step(target, state)
    kernel = made("mala")
    with pytest.raises(ValueError, match="thin must divide n = 5"):
        kernel.step(target, state, 5, thin=2)
    with pytest.raises(ValueError, match="chain 11 has log_prob"):
        kernel.init(target, torch.full((2, 12), math.nan), seed=1, first_chain=11)
    with pytest.raises(ValueError, match="step_size must be given"):
        ParallelTempering(MALA(), betas=(1.0, 0.5, 0.1)).step(target, state)


def test_bad_input_of_a_bridge():
    kernel = ParallelTempering(MALA(0.1), reference=Gaussian(torch.zeros(3), 1.0))
    with pytest.raises(
        ValueError, match=r"reference must have the event shape .* \(2,\), got \(3,\)"
    ):
        kernel.init(TwoModes(2), torch.zeros(2, 2), seed=1)
    sites = ParallelTempering(Metropolis(moves="site"), reference=Gaussian(torch.zeros(12), 1.0))
    with pytest.raises(ValueError, match="Bridged"):
        sites.init(TARGETS["phi4"], torch.zeros(2, 12), seed=1)


def test_bad_input_of_a_ladder_in_r():
    kernel, x = ParallelTempering(MALA(step_size=0.1), r=RS), torch.zeros(2, 2, 1)
    with pytest.raises(TypeError, match=r"r needs a soft field, .* got Phi4"):
        kernel.init(Phi4((2,), 0.1, 0.1), torch.zeros(2, 2), seed=1)
    with pytest.raises(TypeError, match=r"r needs a soft field, .* got Tempered"):
        kernel.init(Tempered(SOFT, 0.5), x, seed=1)
    with pytest.raises(ValueError, match=r"r must start at that of the target, -1\.0, got -3\.0"):
        kernel.init(Counted(ON.soft((2,), 1, -1.0, 1.5)), x, seed=1)
    kernel.init(Counted(SOFT), x, seed=1)
    with pytest.raises(ValueError, match="without a field or a tilt, got Tilted"):
        ParallelTempering(Wolff(), r=RS).init(SOFT, x, seed=1)
    soft, x = ON.soft((2,), 2, -3.0, 1.5), torch.zeros(2, 2, 2)
    with pytest.raises(ValueError, match="local field of each site, which Tilted has not"):
        ParallelTempering(Cycle(HeatBath(), OverRelaxation()), r=RS).init(soft, x, seed=1)
