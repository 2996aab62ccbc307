"""Every kernel leaves its target invariant, against exact draws, quadrature and transfer matrices.

The strong test of invariance needs no mixing: many independent chains start from exact draws, make
a few large steps, and the law must be what it was. Bounds are 5 standard errors (Kolmogorov–Smirnov
distance D of n draws: √n D < 2.7, exceeded by chance with probability 2e^{−2·2.7²} ≈ 1e−6).
"""

import itertools
import math
import threading
from dataclasses import dataclass

import pytest
import torch

from pysamp import backend, exact, metrics, rng
from pysamp.mcmc import (
    HMC,
    MALA,
    ULA,
    DualAveraging,
    Metropolis,
    Multiplicative,
    ParallelTempering,
    warm_up,
)
from pysamp.mcmc.base import Info, replace
from pysamp.target import FunctionTarget, Tempered, log_prob_and_score
from pysamp.targets import GaussianMixture, Phi4, Phi4Chain

F64 = torch.float64
SE = 5.0
# Two overlapping modes, so that the modes exchange weight within a few steps.
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.0], [1.5, 1.0]]), torch.tensor([[0.5, 1.5], [0.3, 0.4]]),
    torch.tensor([0.3, 0.7]),
)  # fmt: skip
KERNELS = {
    "metropolis": Metropolis(width=1.5),
    "mala": MALA(step_size=0.25),
    "hmc": HMC(step_size=0.6, n_leapfrog=3),
    "tempering": ParallelTempering(MALA(step_size=0.3), betas=(1.0, 0.5, 0.2), swap_every=2),
}


def gaussian(dim, sd=1.0):
    return GaussianMixture(torch.zeros(1, dim), torch.tensor([sd**2]))


def worst(means):
    """Largest |z| of (samples (n_chains,), exact value) pairs, with chains independent."""
    scores = []
    for values, expected in means:
        values = values.double()
        scores.append(float((values.mean() - expected).abs() / (values.std() / len(values) ** 0.5)))
    return max(scores)


def assert_law_of_mixture(x, target=MIXTURE):
    """Are x (n, 2) independent draws of `target`? By distribution functions and second moments."""
    n = len(x)
    w, m = target.weights, target.means
    var = target.covariances.reshape(2, -1).expand(2, 2)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, -0.6]], dtype=F64)
    for u in directions:
        mean, sd = m @ u, (var @ (u * u)).sqrt()

        def cdf(t, mean=mean, sd=sd):
            inside = torch.erf((t[:, None] - mean) / sd / math.sqrt(2.0))
            return (w * (1 + inside) / 2).sum(1)

        distance = float(metrics.ks_against(x.double() @ u, cdf))
        assert math.sqrt(n) * distance < 2.7
    second = (w[:, None, None] * (torch.diag_embed(var) + m[:, :, None] * m[:, None, :])).sum(0)
    moments = [(x[:, i], (w @ m)[i]) for i in range(2)]
    pairs = [(0, 0), (0, 1), (1, 1)]
    moments += [(x[:, i].double() * x[:, j].double(), second[i, j]) for i, j in pairs]
    assert worst(moments) < SE


def run_from_exact(kernel, target=MIXTURE, *, n=20_000, steps=4, dtype=torch.float32, seed=11):
    x = target.sample(n, seed=seed, dtype=dtype)
    state = kernel.init(target, x, seed=seed)
    if isinstance(kernel, ParallelTempering):
        state = stationary_rungs(kernel, target, state)
    state, info = kernel.step(target, state, steps)
    return x, state, info


def stationary_rungs(kernel, target, state):
    """Put exact draws of p^β on the hot rungs, by rejection from a wide Gaussian."""
    aux = dict(state.aux)
    x = aux["x"].clone()
    for k, beta in enumerate(kernel.betas[1:], start=1):
        x[:, k] = powered_draws(target, beta, state.n_chains, seed=100 + k).to(x.dtype)
    log_prob, score = log_prob_and_score(target, x.reshape(-1, 2))
    aux["x"], aux["log_prob"] = x, log_prob.reshape(x.shape[:2])
    aux["score"] = aux["ladder"][:, :, None] * score.reshape(x.shape)
    return replace(state, aux=aux)


def powered_draws(target, beta, n, seed):
    """Rejection: p^β ≤ e^M N(0, s²) with M found on a fine grid of the plane."""
    s = 3.5
    grid = torch.linspace(-15, 15, 301, dtype=F64)
    plane = torch.cartesian_prod(grid, grid)

    def excess(x):
        return beta * target.log_prob(x) + 0.5 * (x * x).sum(1) / s**2

    top = float(excess(plane).max()) + 0.05
    g = torch.Generator().manual_seed(seed)
    kept = []
    while sum(map(len, kept)) < n:
        x = s * torch.randn(4 * n, 2, generator=g, dtype=F64)
        log_u = torch.rand(4 * n, generator=g, dtype=F64).log()
        assert float(excess(x).max()) <= top
        kept.append(x[log_u < excess(x) - top])
    return torch.cat(kept)[:n]


# ---------------------------------------------------------------------------- invariance
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("way", ["native", "torch"])
def test_law_is_invariant(name, way, dtype):
    with backend(way):
        x, state, info = run_from_exact(KERNELS[name], dtype=dtype)
    moved = (state.x != x).any(1).double().mean()
    assert moved > 0.8
    assert 0.2 < info.accept.mean() < 0.95
    assert float(info.extra["nonfinite"].sum()) == 0
    assert_law_of_mixture(state.x)
    assert torch.allclose(state.log_prob, MIXTURE.log_prob(state.x), atol=2e-5)


@dataclass(frozen=True, eq=False)
class ForgetsProposal(MALA):
    """MALA that accepts by the ratio of densities alone: wrong."""

    def step(self, target, state, n=1, *, thin=None):
        h = self.step_size
        x, log_prob, score = state.x, state.log_prob, state.score
        for step in range(state.step, state.step + n):
            how = {"seed": state.seed, "stream": "user", "step": step, "dtype": x.dtype}
            new = x + h * score + math.sqrt(2 * h) * rng.normal(x.shape, **how)
            log_new, score_new = log_prob_and_score(target, new)
            log_u = rng.log_uniform((len(x), 1), first=2, **how)[:, 0]
            move = log_u < log_new - log_prob
            x, score = (torch.where(move[:, None], b, a) for a, b in ((x, new), (score, score_new)))
            log_prob = torch.where(move, log_new, log_prob)
        new = replace(state, x=x, log_prob=log_prob, score=score, step=state.step + n)
        none = torch.zeros_like(log_prob)
        return new, Info(none, {"nonfinite": none})


@pytest.mark.parametrize(
    "kernel", [ForgetsProposal(step_size=0.25), ULA(step_size=0.25)], ids=["no ratio", "no test"]
)
def test_wrong_kernels_are_found_out(kernel):
    """The test above must fail where the law is not invariant."""
    _, state, _ = run_from_exact(kernel)
    with pytest.raises(AssertionError):
        assert_law_of_mixture(state.x)


@pytest.mark.parametrize(("h", "way"), [(0.05, "native"), (0.5, "native"), (0.5, "torch")])
def test_ula_bias_on_a_gaussian(h, way):
    """x' = (1 − h) x + √(2h) ξ leaves N(0, 1/(1 − h/2)) invariant, and reaches it."""
    n, var = 40_000, 1 / (1 - h / 2)
    z = rng.normal((n, 3), seed=5, stream="user", dtype=F64)
    with backend(way):
        for start in (math.sqrt(var) * z, z):
            kernel = ULA(step_size=h)
            state = kernel.init(gaussian(3), start, seed=6)
            state, _ = kernel.step(gaussian(3), state, 1 if start is not z else round(8 / h))
            assert worst([(state.x[:, i] ** 2, var) for i in range(3)]) < SE
            assert worst([(state.x[:, 0] * state.x[:, 1], 0.0)]) < SE
    if h == 0.5:  # the bias is large against the error: the target itself must be refused
        assert worst([(state.x[:, 0] ** 2, 1.0)]) > 10


def test_acceptance_of_metropolis_is_the_double_integral():
    """E min(1, p(x')/p(x)) of N(0, 1) by quadrature over x and x'."""
    delta, n = 1.7, 200_000
    x = torch.linspace(-9, 9, 3601, dtype=F64)
    u = torch.linspace(-delta, delta, 2001, dtype=F64)
    weight = torch.exp(-0.5 * x * x)[:, None]
    ratio = torch.exp((0.5 * (x[:, None] ** 2 - (x[:, None] + u) ** 2)).clamp(max=0.0))
    inner = torch.trapezoid(ratio, u, dim=1) / (2 * delta)
    expected = float((weight[:, 0] * inner).sum() / weight.sum())
    _, _, info = run_from_exact(Metropolis(width=delta), gaussian(1), n=n, steps=1, dtype=F64)
    assert worst([(info.accept, expected)]) < SE


@pytest.mark.parametrize("n_leapfrog", [1, 3])
def test_acceptance_of_hmc_on_a_gaussian_is_known(n_leapfrog):
    """2 − (4/π) arctan s, with s the larger singular value of the linear leapfrog map.

    E min(1, e^{−ΔH}) = 2 P(ΔH < 0), and ΔH = ½[(s² − 1) u² + (s⁻² − 1) v²] with u, v ~ N(0, 1).
    """
    eps, n = 0.9, 100_000
    kick = torch.tensor([[1, 0], [-eps / 2, 1]], dtype=F64)
    drift = torch.tensor([[1, eps], [0, 1]], dtype=F64)
    s = torch.linalg.matrix_norm(torch.linalg.matrix_power(kick @ drift @ kick, n_leapfrog), ord=2)
    expected = 2 - 4 / math.pi * math.atan(s)
    kernel = HMC(step_size=eps, n_leapfrog=n_leapfrog)
    _, state, info = run_from_exact(kernel, gaussian(1), n=n, steps=1, dtype=F64)
    assert expected < 0.99
    assert worst([(info.accept, expected), (state.x[:, 0] ** 2, 1.0)]) < SE


def test_energy_error_of_the_leapfrog_is_of_second_order():
    """−ln of an acceptance below 1 is ΔH itself; same momenta, same time, half the step."""
    target = Phi4Chain(n_sites=16, beta=5.0)
    x = rng.normal((400, 16), seed=3, stream="user", dtype=F64) * 0.02 + 1
    errors = []
    steps = [0.02, 0.01, 0.005, 0.0025]
    for eps in steps:
        kernel = HMC(step_size=eps, n_leapfrog=round(0.2 / eps))
        _, info = kernel.step(target, kernel.init(target, x, seed=9), 1)
        errors.append(-info.accept.log())
    positive = torch.stack([(e > 0) for e in errors]).all(0)
    assert positive.sum() > 40
    size = torch.stack([e[positive].mean() for e in errors]).log()
    slopes = (size[:-1] - size[1:]) / math.log(2)
    assert bool(((slopes - 2).abs() < 0.1).all()), slopes


# ---------------------------------------------------------------------------- exact values of φ⁴
def chain_means(kernel, target, *, n_chains, warm, n, thin, dtype=F64, seed=21):
    """Draws (n_chains, n, *event) after a warm-up from N(0, 1)."""
    x = rng.normal((n_chains, *target.event_shape), seed=seed, stream="start", dtype=dtype)
    state = kernel.init(target, x, seed=seed)
    kernel, state, _ = warm_up(kernel, target, state, warm)
    _, info = kernel.step(target, state, n * thin, thin=thin)
    assert torch.allclose(
        info.log_prob.reshape(-1), target.log_prob(info.x.flatten(0, 1)), rtol=1e-5, atol=1e-4
    )
    return info.x.double(), info.log_prob.double()


@pytest.mark.parametrize(
    "kernel", [Metropolis(), Metropolis(moves="all"), MALA(step_size=0.1), HMC(n_leapfrog=4)],
    ids=["sites", "all", "mala", "hmc"],
)  # fmt: skip
@pytest.mark.parametrize("n_sites", [1, 2])
def test_smallest_phi4_chains_against_quadrature(kernel, n_sites):
    target = Phi4Chain(n_sites=n_sites, a=0.5, beta=2.0, h=0.3)
    x, _ = chain_means(kernel, target, n_chains=1000, warm=150, n=100, thin=2)
    if n_sites == 1:
        known = exact.moments_1d(lambda t: target.log_prob(t[:, None]), -6.0, 6.0)
        mean, square = torch.tensor([known.mean]), torch.tensor([[known.var + known.mean**2]])
        plus = 1 - float(known.cdf(torch.zeros(1)))
    else:
        known = exact.moments_2d(target.log_prob, (-6.0, -6.0), (6.0, 6.0))
        mean, square = known.mean, known.cov + torch.outer(known.mean, known.mean)
        plus = known.weight(lambda t: t[:, 1] > 0)
    values = [(x[:, :, i].mean(1), mean[i]) for i in range(n_sites)]
    values += [
        ((x[:, :, i] * x[:, :, j]).mean(1), square[i, j])
        for i, j in itertools.product(range(n_sites), repeat=2)
    ]
    values.append(((x[:, :, -1] > 0).double().mean(1), plus))
    assert worst(values) < SE
    assert abs(plus - 0.5) > 0.05


@pytest.mark.parametrize(
    "kernel", [Metropolis(), MALA(), HMC(n_leapfrog=6)], ids=["sites", "mala", "hmc"]
)
@pytest.mark.parametrize("kind", [torch.float32, F64], ids=["float32", "float64"])
def test_phi4_chain_against_transfer_matrix(kernel, kind):
    target = Phi4Chain(n_sites=16, a=0.1, beta=3.0, h=0.05)
    x, log_prob = chain_means(kernel, target, n_chains=512, warm=450, n=100, thin=10, dtype=kind)
    known = exact.phi4_chain(16, 0.1, 3.0, 0.05)
    mid = x[:, :, 8]
    assert worst([
        ((mid**2).mean(1), known.mid_square),
        (mid.mean(1), known.mid_mean),
        ((mid > 0).double().mean(1), known.weight_plus),
        (-log_prob.mean(1), known.energy),
    ]) < SE  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), (4,), (2, 4), (3, 5), (2, 3)])
@pytest.mark.parametrize("kind", [torch.float32, F64], ids=["float32", "float64"])
def test_phi4_lattice_sweeps_against_transfer_matrix(shape, kind):
    kappa, lam = 0.18, 0.7
    target = Phi4(shape, kappa, lam)
    x, log_prob = chain_means(
        Metropolis(moves="site"), target, n_chains=512, warm=120, n=60, thin=2, dtype=kind
    )
    known = exact.phi4_lattice(shape, kappa, lam)
    event = tuple(range(2, 2 + len(shape)))
    values = [
        (-log_prob.mean(1), known.action),
        ((x**2).mean(event).mean(1), known.phi_square),
        ((x**4).mean(event).mean(1), known.phi_fourth),
    ]
    for axis, neighbour in zip(event, known.neighbour, strict=True):
        values.append(((x * x.roll(-1, axis)).mean(event).mean(1), neighbour))
    assert worst(values) < SE


# ---------------------------------------------------------------------------- warm-up
def test_dual_averaging_is_the_published_recursion():
    """Eq. 6 of Hoffman and Gelman (2014), written out with its loop."""
    accepts = [0.9, 0.1, 0.55, 0.7, 0.3, 0.62]
    state = DualAveraging.start(0.3, 0.6)
    mu, total, average = math.log(0.3), 0.0, math.log(0.3)
    for t, accept in enumerate(accepts, start=1):
        state = state.update(accept)
        total += 0.6 - accept
        x = mu - math.sqrt(t) / 0.05 * total / (t + 10)
        average = t**-0.75 * x + (1 - t**-0.75) * average
        assert float(state.log_scale) == pytest.approx(x, rel=1e-12)
        assert float(state.log_averaged) == pytest.approx(average, rel=1e-12)


def test_dual_averaging_finds_the_root_of_each_group():
    """acceptance e^{−ε c}: the scale that gives 0.6 is −ln 0.6 / c."""
    rate = torch.tensor([0.01, 1.0, 30.0], dtype=F64)
    state = DualAveraging.start(torch.ones(3), 0.6)
    for _ in range(200):
        state = state.update(torch.exp(-state.scale * rate))
    torch.testing.assert_close(state.averaged, -math.log(0.6) / rate, rtol=0.05, atol=0)


@dataclass(frozen=True, eq=False)
class FarMALA(MALA):
    begin: float = 1.0

    def initial_scale(self, target):
        return self.begin


@dataclass(frozen=True, eq=False)
class FarHMC(HMC):
    begin: float = 1.0

    def initial_scale(self, target):
        return self.begin


@dataclass(frozen=True, eq=False)
class FarMetropolis(Metropolis):
    begin: float = 1.0

    def initial_scale(self, target):
        return self.begin


@pytest.mark.parametrize("begin", [1e-4, 1e3])
@pytest.mark.parametrize("kind", [FarMALA, FarHMC, FarMetropolis])
def test_warm_up_reaches_its_acceptance(kind, begin):
    variances = torch.logspace(0, 1, 8)[None]
    target = GaussianMixture(torch.zeros(1, 8), variances)
    # With more leapfrog steps the acceptance of a Gaussian is no monotone function of their size.
    kernel = kind(begin=begin, **({"n_leapfrog": 3} if kind is FarHMC else {}))
    state = kernel.init(target, target.sample(200, seed=1), seed=2)
    done = []
    kernel, state, report = warm_up(kernel, target, state, 300, progress=done.append)
    _, info = kernel.step(target, state, 200)
    wanted = kernel.target_accept(target)
    assert abs(float(info.accept.mean()) - wanted) < 0.03
    assert report["accept"] == pytest.approx(wanted, abs=0.03)
    assert isinstance(report["scale"], float)
    assert kernel.scale() == report["scale"]
    assert report["steps"] == state.step == sum(done) == 300


@pytest.mark.parametrize(
    "inner", [MALA(), HMC(n_leapfrog=4), Metropolis()], ids=["mala", "hmc", "rwm"]
)
def test_warm_up_reaches_the_acceptance_of_every_rung(inner):
    target = gaussian(8)
    kernel = ParallelTempering(inner, n_rungs=4, beta_min=0.05)
    state = kernel.init(target, target.sample(200, seed=1), seed=2)
    kernel, state, report = warm_up(kernel, target, state, 450)
    _, info = kernel.step(target, state, 200)
    rungs = info.extra["rung_accept"].mean(0)
    assert bool(((rungs - inner.target_accept(target)).abs() < 0.03).all()), rungs
    # A Gaussian scales: steps grow like 1/β (widths and leapfrog steps like 1/√β).
    scale, beta = torch.tensor(report["scale"]), torch.tensor(report["ladder"])
    power = 1.0 if isinstance(inner, MALA) else 0.5
    assert bool(((scale * beta**power / scale[0]).log().abs() < 0.2).all()), scale


@pytest.mark.parametrize(("n_chains", "n_steps"), [(1, 3000), (30_000, 60)])
def test_warm_up_with_one_chain_and_with_very_many(n_chains, n_steps):
    target = gaussian(4)
    kernel = MALA()
    state = kernel.init(target, target.sample(n_chains, seed=1), seed=2)
    kernel, state, _ = warm_up(kernel, target, state, n_steps)
    _, info = kernel.step(target, state, 4000 if n_chains == 1 else 20)
    assert abs(float(info.accept.mean()) - 0.574) < 0.06


def test_warm_up_from_far_tails():
    """Starting points 200 σ out, where the scale that fits is another one than in the middle."""
    target = gaussian(4)
    kernel = MALA()
    x = torch.full((100, 4), 200.0, dtype=F64)
    kernel, state, _ = warm_up(kernel, target, kernel.init(target, x, seed=2), 600)
    _, info = kernel.step(target, state, 200)
    assert abs(float(info.accept.mean()) - 0.574) < 0.03
    assert float(state.x.abs().max()) < 8


@pytest.mark.parametrize(
    "kernel", [MALA(), ParallelTempering(MALA(), n_rungs=3)], ids=["mala", "tempering"]
)
def test_scale_does_not_depend_on_the_number_of_processes(kernel):
    target, n, cuts = Phi4Chain(8, beta=2.0), 30, [0, 11, 30]
    x = rng.normal((n, 8), seed=1, stream="start")
    _, state, report = warm_up(kernel, target, kernel.init(target, x, seed=2), 90)
    meet, slots, parts = threading.Barrier(2), [None, None], [None, None]

    def process(rank):
        def gather(rows):
            slots[rank] = rows
            meet.wait(timeout=20)
            out = torch.cat(slots)
            meet.wait(timeout=20)
            return out

        first, end = cuts[rank], cuts[rank + 1]
        own = kernel.init(target, x[first:end], seed=2, first_chain=first)
        parts[rank] = warm_up(kernel, target, own, 90, gather=gather)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    [t.start() for t in threads]
    [t.join(timeout=30) for t in threads]
    assert torch.equal(torch.cat([part[1].x for part in parts]), state.x)
    assert all(part[2] == report for part in parts)


@pytest.mark.parametrize("n_steps", [100, 300])
@pytest.mark.parametrize("tempered", [False, True], ids=["plain", "tempered"])
def test_warm_up_frees_chains_that_stand_still(tempered, n_steps):
    """In a quartic tail a step that suits nearly all chains moves the others nowhere."""
    target = Phi4((2,), 0.2, 0.5)
    x = rng.normal((512, 2), seed=3, stream="start")
    kernel = ParallelTempering(MALA(), n_rungs=3, beta_min=0.5) if tempered else MALA()
    stuck, _ = MALA(step_size=0.36).step(target, MALA().init(target, x, seed=3), 100)
    assert int((stuck.x == x).all(1).sum()) > 10
    kernel, state, _ = warm_up(kernel, target, kernel.init(target, x, seed=3), n_steps)
    assert state.step == n_steps
    state, info = kernel.step(target, state, 400, thin=1)
    assert float(info.accept.min()) > 0.1
    assert abs(float(info.accept.mean()) - 0.574) < 0.03
    square = (info.x.double() ** 2).mean(dim=(1, 2))
    error = float(square.std()) / math.sqrt(len(square))
    assert abs(float(square.mean()) - exact.phi4_lattice((2,), 0.2, 0.5).phi_square) < 5 * error


def test_warm_up_leaves_a_given_scale_alone():
    target = gaussian(3)
    kernel = MALA(step_size=0.2)
    state = kernel.init(target, target.sample(7, seed=1), seed=2)
    same, after, report = warm_up(kernel, target, state, 50)
    assert same is kernel
    assert "scale" not in report
    assert torch.equal(after.x, kernel.step(target, state, 50)[0].x)
    assert 0.5 < report["accept"] < 1
    ula, at, _ = warm_up(ULA(step_size=0.1), target, state, 5)
    assert isinstance(ula, ULA)
    assert at.step == 5
    assert warm_up(kernel, target, state, 0)[1] is state


def test_warm_up_that_cannot_work_says_so():
    target = gaussian(3)
    state = MALA().init(target, target.sample(4, seed=1), seed=2)
    with pytest.raises(ValueError, match=r"step_size or width .* n_steps = 0"):
        warm_up(MALA(), target, state, 0)
    with pytest.raises(ValueError, match=r"n_steps must be .* got -1"):
        warm_up(MALA(), target, state, -1)
    hole = FunctionTarget(lambda x: torch.where((x == 0).all(1), 0.0, torch.nan).to(x.dtype), (2,))
    kernel = Metropolis()
    with pytest.raises(RuntimeError, match=r"no step size or width of Metropolis from .* to 0\.5"):
        warm_up(kernel, hole, kernel.init(hole, torch.zeros(5, 2), seed=0), 300)
    with pytest.raises(RuntimeError, match="3 steps of warm-up were too few"):
        warm_up(kernel, hole, kernel.init(hole, torch.zeros(5, 2), seed=0), 3)
    with pytest.raises(ValueError, match="target must lie in"):
        DualAveraging.start(1.0, 1.5)
    with pytest.raises(ValueError, match="scale must be positive"):
        DualAveraging.start(-1.0, 0.5)


@pytest.mark.parametrize("way", ["native", "torch"])
def test_each_chain_adapts_its_own_step(way):
    """Chains on Gaussians of very different widths find steps in proportion to the variances."""
    n = 64
    sd = torch.logspace(-1, 0.5, n, dtype=F64)
    target = Tempered(gaussian(4), sd**-2)
    x = sd[:, None] * rng.normal((n, 4), seed=1, stream="user", dtype=F64)
    kernel = MALA(step_size=0.05, adapt=Multiplicative(target=0.75, factor=1.05, cap=50.0))
    with backend(way):
        state = kernel.init(target, x, seed=3)
        state, _ = kernel.step(target, state, 250)
        state, info = kernel.step(target, state, 200)
    assert 0.6 < float(info.accept.mean()) < 0.8
    assert bool(((info.accept > 0.5) & (info.accept < 0.9)).all())
    assert float((state.aux["step_size"] / sd**2).log().std()) < 0.5
