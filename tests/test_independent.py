"""Independent proposals and their mixtures with local moves, against enumeration and closed forms.

A target of a few flat levels has a transition matrix that can be written down, and transitions are
counted against it. Acceptances are those of Grenioux et al. (2023), checks 2 to 6. Bounds are 5
standard errors; √n D < 2.7 of a Kolmogorov–Smirnov distance D is exceeded with probability 1e−6.
"""

import itertools
import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from pysamp import chains, metrics, rng, store
from pysamp.describe import NotRebuildableError, describe, rebuild
from pysamp.mcmc import HMC, MALA, ULA, Cycle, Metropolis, ParallelTempering, warm_up
from pysamp.mcmc.independent import IMH, ISIR
from pysamp.mcmc.mixed import AdaptiveMCMC, Ex2MCMC
from pysamp.mcmc.neutra import Neutra
from pysamp.nets import CircularSplineFlow, Compose, Flow, Normal, Product, Torus
from pysamp.nets.analytic import FunnelFlow, LinearFlow
from pysamp.nets.coupling import AffineCoupling
from pysamp.nets.realnvp import RealNVP
from pysamp.samplers.importance import Importance
from pysamp.sampling import resume, sample
from pysamp.tally import Tally
from pysamp.target import Counted, FunctionTarget, Tempered, log_prob_and_score
from pysamp.targets import ON, Funnel, Gaussian, GaussianMixture, Phi4Chain

F64 = torch.float64
NORMAL = Gaussian(torch.zeros(2), 1.0)
quick = {"n_chains": 6, "n_draws": 40, "progress": False}


def wrong(dtype=torch.float32) -> Flow:
    """Of the standard normal in two dimensions."""
    return LinearFlow(1.5 * torch.eye(2), torch.tensor([0.3, 0.3])).to(dtype)


WRONG = wrong()


def learned(dtype=torch.float32) -> Flow:
    """A flow of networks that is neither the identity nor wild."""
    return RealNVP(2, n_blocks=2, hidden=16, init_scale=1.0, seed=3).to(dtype)


def layered(dtype=torch.float32) -> Flow:
    """The same kind of flow, evaluated by torch layer by layer."""
    layers = [AffineCoupling(2, (k,), 16, init_scale=1.0, seed=3, index=k) for k in range(2)]
    return Compose(*layers, event_shape=2).to(dtype)


def some_flow(name, dtype):
    if name == "other":
        return Gaussian(torch.zeros(2), 2.0)
    return {"analytic": wrong, "native": learned, "torch": layered}[name](dtype)


def kernels(flow) -> dict:
    return {
        "imh": IMH(flow),
        "isir": ISIR(flow, n=4),
        "adaptive": AdaptiveMCMC(flow, MALA(step_size=0.5), n_local=3),
        "ex2": Ex2MCMC(flow, n=4, local=HMC(step_size=0.5, n_leapfrog=3), n_local=2),
        "cycle": AdaptiveMCMC(flow, Cycle(MALA(step_size=0.5), Metropolis(width=1.0)), n_local=2),
    }


NAMES = list(kernels(WRONG))


def assert_standard_normal(x):
    """Are x (n, 2) independent draws of N(0, 1)? By Kolmogorov–Smirnov and second moments."""
    n = len(x)
    for u in torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=F64):
        distance = float(metrics.ks_against(x.double() @ u, torch.special.ndtr))
        assert math.sqrt(n) * distance < 2.7
    products = [x[:, i].double() * x[:, j].double() for i, j in ((0, 0), (1, 1), (0, 1))]
    for values, expected in zip(products, (1.0, 1.0, 0.0)):
        assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / math.sqrt(n)


# ---------------------------------------------------------------------------- levels, enumerated
@dataclass(frozen=True)
class Levels:
    """exp(log p) is flat in each quarter of (0, 1): `levels`, which may be 0 or NaN."""

    levels: tuple[float, ...] = (0.1, 1.0, 0.0, 2.0)
    event_shape: tuple[int, ...] = (1,)

    def log_prob(self, x):
        value = torch.tensor(self.levels, dtype=x.dtype).log()
        return value[cell(x)]


def cell(x):
    return (x[:, 0] * 4).long().clamp(0, 3)


@dataclass(frozen=True)
class Steps:
    """Draws of (0, 1) whose quarters have the probabilities q."""

    q: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    event_shape: tuple[int, ...] = (1,)

    def log_prob(self, x):
        return (torch.tensor(self.q, dtype=x.dtype) * 4).log()[cell(x)]

    def sample(self, n, *, seed, first_chain, device, dtype):
        u = rng.uniform((n, 2), seed=seed, first_chain=first_chain, device=device, dtype=dtype)
        at = (u[:, :1] > torch.tensor(self.q, dtype=dtype).cumsum(0)[:3]).sum(1, keepdim=True)
        return (at + u[:, 1:]) / 4


def transition_matrix(levels, q, n):
    """P (4, 4) of IMH (n = 1) or i-SIR (n ≥ 2) between quarters, from the definition."""
    p, q = torch.tensor(levels, dtype=F64).nan_to_num(0.0), torch.tensor(q, dtype=F64)
    w = p / q
    matrix = torch.zeros(4, 4, dtype=F64)
    for i in range(4):
        if w[i] == 0:  # no chain is there
            matrix[i, i] = 1
            continue
        for others in itertools.product(range(4), repeat=max(1, n - 1)):
            chance = math.prod(float(q[j]) for j in others)
            if n == 1:
                accept = min(1.0, float(w[others[0]] / w[i]))
                matrix[i, others[0]] += chance * accept
                matrix[i, i] += chance * (1 - accept)
            else:
                weights = torch.tensor([w[i], *(w[j] for j in others)])
                for j, share in zip((i, *others), weights / weights.sum()):
                    matrix[i, j] += chance * share
    return matrix


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("hole", [0.0, math.nan, math.inf])
def test_transitions_are_those_of_the_definition(n, hole, dtype):
    """Also where some candidates have no weight: a density 0, or NaN or +∞, which are counted."""
    target = Levels((0.1, 1.0, hole, 2.0))
    zeroed = (0.1, 1.0, 0.0, 2.0)
    matrix = transition_matrix(zeroed, Steps().q, n)
    flat = torch.tensor(zeroed, dtype=F64)
    assert torch.allclose(flat @ matrix, flat)  # the enumeration is invariant itself
    kernel = IMH(Steps()) if n == 1 else ISIR(Steps(), n=n)
    m = 20_000
    for i in (0, 1, 3):
        x = torch.full((m, 1), i / 4 + 0.1, dtype=dtype)
        state, info = kernel.step(target, kernel.init(target, x, seed=5 + i))
        counts = torch.bincount(cell(state.x), minlength=4).double()
        chance = matrix[i]
        error = (m * chance * (1 - chance)).sqrt()
        assert bool(((counts - m * chance).abs() <= 5 * error + 1e-9).all())
        leave = info.accept.double()
        away = state.x[:, 0] != x[:, 0]
        error = float(leave.std()) / math.sqrt(m) + 0.5 / math.sqrt(m)
        assert abs(float(away.double().mean() - leave.mean())) < 5 * error
        assert torch.equal(info.extra["flow_accept"], info.accept)
        bad = info.extra["nonfinite"].double()
        if hole == 0.0:
            assert float(bad.sum()) == 0
        else:
            expected, candidates = 0.2 * max(1, n - 1), m * max(1, n - 1)
            assert abs(float(bad.mean()) - expected) < 5 * 0.4 * max(1, n - 1) / candidates**0.5


@pytest.mark.parametrize("make", [IMH, lambda q: ISIR(q, n=8), lambda q: Ex2MCMC(q, n=8)])
def test_a_chain_stays_where_all_weights_are_zero(make):
    """Candidates are drawn where the target has no density; the repository resamples them uniformly."""
    target, kernel = Levels((1.0, 0.0, 0.0, 0.0)), make(Steps((1e-30, 0.5, 0.3, 0.2)))
    x = torch.full((50, 1), 0.1)
    state = kernel.init(Counted(target), x, seed=1) if isinstance(kernel, (IMH, ISIR)) else None
    if state is None:  # flat pieces have no score
        kernel = replace(kernel, local=Metropolis(width=1e-3))
        state = kernel.init(target, x, seed=1)
    new, info = kernel.step(target, state)
    assert torch.equal(new.x, x)
    assert float(info.extra["flow_accept"].max()) == 0
    assert float(info.extra["nonfinite"].max()) == 0
    assert bool(torch.isfinite(new.log_prob).all())
    if "mc_ess" in info.extra:
        assert torch.allclose(info.extra["mc_ess"], torch.tensor(1 / 8))


def test_mc_ess_is_that_of_the_weights():
    """From a state of weight w with candidates of weight v: (w + 7 v)²/(w² + 7 v²)/8."""
    for w, v in ((1.0, 1.0), (8.0, 2.0), (1.0, 5.0)):
        target = Levels((w, v, v, v))
        kernel = ISIR(Steps((1e-30, 1 / 3, 1 / 3, 1 / 3)), n=8)
        kernel = replace(kernel, proposal=Even())
        state = kernel.init(target, torch.full((10, 1), 0.1, dtype=F64), seed=2)
        _, info = kernel.step(target, state)
        expected = (w + 7 * v) ** 2 / (w**2 + 7 * v**2) / 8
        assert info.extra["mc_ess"].tolist() == pytest.approx([expected] * 10, rel=1e-12)
        assert info.accept.tolist() == pytest.approx([7 * v / (w + 7 * v)] * 10, rel=1e-12)


@dataclass(frozen=True)
class Even(Steps):
    """The density 1 on (0, 1), but draws of its upper half alone: weights are then known."""

    def log_prob(self, x):
        return torch.zeros_like(x[:, 0])

    def sample(self, n, *, seed, first_chain, device, dtype):
        u = rng.uniform((n, 1), seed=seed, first_chain=first_chain, device=device, dtype=dtype)
        return 0.5 + 0.5 * u


# ---------------------------------------------------------------------------- invariance
@pytest.mark.parametrize("name", NAMES)
def test_law_is_invariant_with_a_wrong_flow(name, dtype):
    """Check 5 without mixing: many chains from exact draws make a few steps."""
    kernel = kernels(wrong(dtype))[name]
    x = NORMAL.sample(10_000, seed=1, dtype=dtype)
    state, info = kernel.step(NORMAL, kernel.init(NORMAL, x, seed=2), 5)
    assert float((state.x != x).any(1).double().mean()) > 0.9
    assert 0.3 < float(info.accept.mean()) < 0.95
    assert_standard_normal(state.x)
    assert torch.allclose(state.log_prob, NORMAL.log_prob(state.x), atol=2e-5)
    if state.score is not None:
        assert torch.allclose(state.score, log_prob_and_score(NORMAL, state.x)[1], atol=2e-5)
    if "log_q" in state.aux:
        assert torch.allclose(state.aux["log_q"], wrong(dtype).log_prob(state.x), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_moments_after_a_long_run_with_a_wrong_flow(name):
    """Check 5: 64 chains of 5000 steps, mean within .02 and variance within .03."""
    s = sample(NORMAL, kernels(WRONG)[name], n_chains=64, n_draws=5000, warmup=10, progress=False)
    x = s.x.double().flatten(0, 1)
    assert float(x.mean(0).abs().max()) < 0.02
    assert float((x.var(0) - 1).abs().max()) < 0.03


@pytest.mark.parametrize("d, s, expected", [
    (1, 2.0, 0.59033), (1, 0.5, 0.59033), (10, 1.2, 0.57491), (16, 1.1, 0.70762), (32, 1.2, 0.30747),
])  # fmt: skip
def test_acceptance_between_two_normals(d, s, expected):
    """Check 2: twice the regularised incomplete beta function; 4e5 or 2e5 pairs, tolerance .004."""
    target, kernel = Gaussian(torch.zeros(d), 1.0), IMH(LinearFlow(s * torch.eye(d)))
    x = target.sample(100_000, seed=3)
    _, info = kernel.step(target, kernel.init(target, x, seed=4), 2 if d > 10 else 4)
    assert abs(float(info.accept.double().mean()) - expected) < 0.004


@pytest.mark.parametrize(
    "d, s, expected", [(8, 1.2, 0.67567), (16, 1.1, 0.78296), (8, 0.9, 0.79742)]
)
def test_efficiency_of_importance_weights(d, s, expected):
    """Check 3: (√(2s² − 1)/s²)^d; 8e5 draws, tolerance .01."""
    target, flow = Gaussian(torch.zeros(d), 1.0), LinearFlow(s * torch.eye(d))
    x, log_q = flow.sample_and_log_prob(800_000, seed=5)
    log_weight = (target.log_prob(x) - log_q).double()
    assert abs(float(metrics.ess_weights(log_weight)) / 800_000 - expected) < 0.01


@pytest.mark.parametrize(
    "d, beta, expected", [(16, 2.0, 0.19106), (16, 1.5, 0.44152), (64, 1.2, 0.4714)]
)
def test_acceptance_on_the_funnel(d, beta, expected):
    """Check 4: that of d − 1 normals of the width beta^−½, from a stationary start; tolerance .01."""
    target, kernel = Funnel(d), IMH(FunnelFlow(d, beta))
    x = FunnelFlow(d).sample(10_000, seed=6)  # without a mismatch the flow is the funnel
    _, info = kernel.step(target, kernel.init(target, x, seed=7), 4)
    assert abs(float(info.accept.double().mean()) - expected) < 0.01


def test_distance_of_i_sir_falls_as_its_bound():
    """Check 6: p = N(0, 1), q = N(0, 4), so p/q ≤ M = 2; from x = 5 with N = 8 candidates the total
    variation after k steps is at most (1 − (N − 1)/(2M + N − 2))^k."""
    target, kernel = Gaussian(torch.zeros(1), 1.0), ISIR(LinearFlow(2 * torch.eye(1)), n=8)
    n = 100_000
    state = kernel.init(target, torch.full((n, 1), 5.0), seed=8)
    edges = torch.linspace(-3.5, 3.5, 29, dtype=F64)
    cdf = torch.special.ndtr(edges)
    exact = torch.cat((cdf[:1], cdf.diff(), 1 - cdf[-1:]))
    before = 1.0
    for k in (1, 2, 3):
        state, _ = kernel.step(target, state)
        counts = torch.bincount(torch.bucketize(state.x[:, 0].double(), edges), minlength=30)
        distance = float((counts / n - exact).abs().sum()) / 2
        assert distance <= 0.3**k + 0.02
        assert distance < before
        before = distance


# ---------------------------------------------------------------------------- what changes nothing
def assert_same(a, b):
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.log_prob, b.log_prob)
    assert a.aux.keys() == b.aux.keys()
    assert all(torch.equal(a.aux[key], b.aux[key]) for key in a.aux)
    assert a.step == b.step


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", ["analytic", "native", "torch", "other"])
def test_fused_steps_equal_single_steps(name, flow, dtype):
    kernel = kernels(some_flow(flow, dtype))[name]
    x = NORMAL.sample(5, seed=1, dtype=dtype)
    first = kernel.init(NORMAL, x, seed=9)
    first, _ = kernel.step(
        NORMAL, first, 2
    )  # begin in the middle of a cycle of global and local moves
    fused, info = kernel.step(NORMAL, first, 12, thin=3)
    state, accept = first, []
    for k in range(12):
        state, one = kernel.step(NORMAL, state)
        accept.append(one.accept)
        if k % 3 == 2:
            assert torch.equal(info.x[:, k // 3], state.x)
            assert torch.equal(info.log_prob[:, k // 3], state.log_prob)
    assert_same(fused, state)
    assert torch.allclose(info.accept, torch.stack(accept).mean(0), rtol=1e-5)
    for thin in (1, 2, 4, 12):
        again, other = kernel.step(NORMAL, first, 12, thin=thin)
        assert_same(again, fused)
        assert other.x.shape[1] == other.log_prob.shape[1] == 12 // thin
        assert torch.equal(other.x[:, -1], fused.x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", ["native", "torch", "other"])
def test_splitting_the_batch_changes_nothing(name, flow, dtype):
    kernel = kernels(some_flow(flow, dtype))[name]
    x = NORMAL.sample(11, seed=1, dtype=dtype)
    whole, info = kernel.step(NORMAL, kernel.init(NORMAL, x, seed=9), 9)
    for rows in (slice(0, 4), slice(4, 11)):
        start = kernel.init(NORMAL, x[rows], seed=9, first_chain=rows.start)
        part, other = kernel.step(NORMAL, start, 9)
        assert torch.equal(part.x, whole.x[rows])
        assert torch.equal(other.accept, info.accept[rows])


def test_bounded_memory_changes_nothing(monkeypatch):
    kernel = ISIR(learned(), n=5)
    x = NORMAL.sample(7, seed=1)
    start = kernel.init(NORMAL, x, seed=9)
    whole, _ = kernel.step(NORMAL, start, 6)
    for rows in (1, 9, 40):  # less than a step, than a chain; some steps
        monkeypatch.setattr("pysamp.mcmc.proposals.ROWS", rows)
        assert_same(kernel.step(NORMAL, start, 6)[0], whole)


def test_values_for_each_chain_go_with_their_chain():
    """x ~ N(0, 1/beta) in chain by chain, as with the target of each alone."""
    beta = torch.tensor([0.5, 1.0, 2.0])
    for kernel in (IMH(WRONG), ISIR(WRONG, n=4), Ex2MCMC(WRONG, 4, MALA(0.3), 2)):
        together = Counted(Tempered(NORMAL, beta))
        state = kernel.init(together, torch.zeros(3, 2), seed=3)
        state, _ = kernel.step(together, state, 7)
        for i in range(3):
            alone = Tempered(NORMAL, float(beta[i]))
            one = kernel.init(alone, torch.zeros(1, 2), seed=3, first_chain=i)
            one, _ = kernel.step(alone, one, 7)
            assert torch.allclose(one.x[0], state.x[i], atol=1e-6)


def test_cost_is_counted_exactly():
    flow = LinearFlow(torch.eye(4))
    x = torch.zeros(3, 4)
    for kernel, evaluations, gradients in (
        (IMH(flow), 3 + 10 * 3, 0),
        (ISIR(flow, n=5), 3 + 10 * 4 * 3, 0),
        # global moves at t = 0, 4, 8: three candidates and one evaluation with its gradient
        (Ex2MCMC(flow, 4, MALA(0.1), 3), 3 + 7 * 3 + 3 * (3 + 1) * 3, 3 + 7 * 3 + 3 * 3),
        (AdaptiveMCMC(flow, Metropolis(0.1, moves="all"), 3), 3 + 7 * 3 + 3 * 3, 0),
    ):
        counted = Counted(Phi4Chain(4))
        kernel.step(counted, kernel.init(counted, x, seed=1), 10)
        assert (counted.evaluations, counted.gradients) == (evaluations, gradients)


# ---------------------------------------------------------------------------- through sample()
@pytest.mark.parametrize("name", NAMES)
def test_sample_and_resume(name, tmp_path, monkeypatch):
    """A run that dies goes on with the sampler given again, to the same bits."""
    flow = learned()
    kernel = kernels(flow)[name]
    monkeypatch.setattr("pysamp.plan.BLOCK_STEPS", 15)
    s = sample(NORMAL, kernel, **quick, warmup=5, thin=3, seed=4)
    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "run"
    saved = store.save_checkpoint

    def dies(folder, part, checkpoint):
        saved(folder, part, checkpoint)
        if checkpoint.n_draws >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt):
        sample(NORMAL, kernel, **quick, warmup=5, thin=3, seed=4, out=path)
    monkeypatch.setattr(store, "save_checkpoint", saved)
    with pytest.raises(ValueError, match=r"proposal is the network .*RealNVP.*sampler=\.\.\."):
        resume(path, progress=False)
    with torch.no_grad():
        other = learned()
        other.weights += 1e-6
    with pytest.raises(ValueError, match="digest"):
        resume(path, sampler=kernels(other)[name], progress=False)
    again = resume(path, sampler=kernels(learned())[name], progress=False)
    assert torch.equal(again.x, s.x)
    assert torch.equal(again.log_prob, s.log_prob)
    for key in ("accept", "flow_accept"):
        assert torch.equal(again.info[key], s.info[key])
    assert again.info["evaluations"] == s.info["evaluations"]


def test_a_run_with_a_described_proposal_resumes_by_itself(tmp_path):
    kernel = Ex2MCMC(Gaussian(torch.zeros(2), 1.5), 4, MALA(0.5), 2)
    s = sample(NORMAL, kernel, **quick, warmup=5, out=tmp_path / "run")
    again = resume(tmp_path / "run", progress=False)
    assert torch.equal(again.x, s.x)
    made = rebuild(describe(kernel))
    assert describe(made) == describe(kernel)


def test_what_a_network_is_is_described():
    same = describe(IMH(learned()))
    assert same == describe(IMH(learned()))
    assert same["fields"]["proposal"].keys() == {"network", "digest"}
    settings = RealNVP(2, n_blocks=2, hidden=16, init_scale=1.0, seed=3, mask="alternate")
    assert torch.equal(settings.weights, learned().weights)
    others = [learned(F64), settings, RealNVP(2, n_blocks=2, hidden=16, init_scale=1.0, seed=4)]
    digests = {str(describe(IMH(flow))) for flow in (learned(), *others)}
    assert len(digests) == 4
    with pytest.raises(NotRebuildableError, match="proposal is the network"):
        rebuild(same)


def test_the_mean_over_global_moves_does_not_depend_on_calls():
    """Calls with few or no global moves: their sums add up."""
    kernel = kernels(WRONG)["ex2"]
    state = kernel.init(NORMAL, torch.zeros(4, 2), seed=1)
    whole = Tally()
    _, info = kernel.step(NORMAL, state, 20)
    whole.add({"accept": info.accept, **info.extra}, 20)
    pieces = Tally()
    for n in (1, 1, 1, 6, 1, 1, 9):
        state, info = kernel.step(NORMAL, state, n)
        pieces.add({"accept": info.accept, **info.extra}, n)
    a, b = whole.means(), pieces.means()
    for key in ("accept", "flow_accept", "local_accept", "mc_ess", "flow_moves", "local_steps"):
        assert torch.allclose(a[key], b[key], rtol=1e-5), key
    assert a["flow_moves"].tolist() == [7.0] * 4
    assert 0.3 < float(a["flow_accept"].mean()) < 0.9


def test_warm_up_sees_the_local_acceptance_alone():
    """A flow that accepts everything or nothing leaves the step size of the local kernel as it is."""
    found = []
    good, bad = LinearFlow(torch.eye(2)), LinearFlow(1e-3 * torch.eye(2), torch.full((2,), 9.0))
    for flow, n_local in ((good, 1), (bad, 1), (bad, 7)):
        kernel = AdaptiveMCMC(flow, MALA(), n_local)
        state = kernel.init(NORMAL, NORMAL.sample(100, seed=1), seed=2)
        tuned, state, report = warm_up(kernel, NORMAL, state, 200)
        assert state.step == 200
        assert report["accept"] == pytest.approx(0.574, abs=0.05)
        found.append(report["scale"])
        assert tuned.local.step_size == tuned.scale() == report["scale"]
    assert max(found) / min(found) < 1.3


def test_modes_are_exchanged_by_global_moves_alone():
    """Weights of two far modes from chains that all start in one of them."""
    target = GaussianMixture(
        torch.tensor([[-4.0, 0.0], [4.0, 0.0]]), torch.tensor([0.5, 0.5]), torch.tensor([0.3, 0.7])
    )
    flow = LinearFlow(torch.diag(torch.tensor([4.5, 1.0])))
    x0 = torch.tensor([[4.0, 0.0]]).repeat(64, 1)
    kernel = Ex2MCMC(flow, 20, MALA(0.2), 4)
    s = sample(target, kernel, x0=x0, n_draws=400, warmup=50, progress=False)
    summary = s.summary()
    assert [abs(mode["z"]) < 5 for mode in summary.modes] == [True, True]
    assert all(mode["draws"] for mode in summary.modes)
    assert not any("flow" in text for text in summary.verdict)
    assert "flow        accept 0." in str(summary)


def test_a_flow_that_is_hardly_ever_accepted_is_said_and_the_cure_named():
    far = LinearFlow(0.05 * torch.eye(2), torch.tensor([3.0, 3.0]))
    for kernel in (IMH(far), ISIR(far, n=3), AdaptiveMCMC(far, MALA(0.5), 4)):
        s = sample(NORMAL, kernel, n_chains=16, n_draws=200, warmup=10, progress=False)
        said = " ".join(s.summary().verdict)
        assert float(s.info["flow_accept"].mean()) < 0.01
        assert "the flow's proposals are accepted with probability" in said
        assert "train the flow longer" in said
        assert "step size" not in said


# ---------------------------------------------------------------------------- bad input
class Sideways(Flow):
    """Its inverse is that of another map."""

    def transform(self, z):
        return 2 * z, z.new_full((len(z),), self.dim * math.log(2))

    def untransform(self, x):
        return x / 2.1, x.new_full((len(x),), -self.dim * math.log(2.1))


@dataclass(frozen=True)
class NoChains(Steps):
    def sample(self, n, *, seed):
        return torch.zeros(n, 1)


@pytest.mark.parametrize("make, kind, text", [
    (lambda: IMH(torch.distributions.Normal(0.0, 1.0)), TypeError, "proposal must be a flow or have"),
    (lambda: IMH(Gaussian), TypeError, "proposal must be a flow or have .* got Gaussian"),
    (lambda: IMH(torch.nn.Linear(2, 2)), TypeError, "got Linear"),
    (lambda: ISIR(NoChains(), n=4), TypeError, "sample of NoChains lacks .*first_chain"),
    (lambda: ISIR(WRONG, n=1), ValueError, "n must be at least 2, .* got 1"),
    (lambda: ISIR(WRONG, n=2.5), TypeError, "n must be an int, got 2.5"),
    (lambda: Ex2MCMC(WRONG, n=True), TypeError, "n must be an int, got True"),
    (lambda: AdaptiveMCMC(WRONG, n_local=0), ValueError, "n_local must be at least 1, got 0"),
    (lambda: AdaptiveMCMC(WRONG, n_local=1.5), TypeError, "n_local must be an int"),
    (lambda: AdaptiveMCMC(WRONG, ULA(0.1)), TypeError, "local must leave its target invariant"),
    (lambda: AdaptiveMCMC(WRONG, IMH(WRONG)), TypeError, "local must be a kernel of local moves"),
    (lambda: AdaptiveMCMC(WRONG, MALA), TypeError, "local must be a kernel"),
])  # fmt: skip
def test_bad_arguments(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


@pytest.mark.parametrize("make", [IMH, ISIR, AdaptiveMCMC, Ex2MCMC])
def test_bad_starts(make):
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"event shape of the target, \(2,\), got \(3,\)"):
        make(LinearFlow(torch.eye(3))).init(NORMAL, x, seed=0)
    with pytest.raises(ValueError, match="flow does not invert"):
        make(Sideways(2)).init(NORMAL, x + 1, seed=0)
    with pytest.raises(ValueError, match="float32"):
        make(learned()).init(NORMAL, x.double(), seed=0)
    kernel, target = make(Steps((0.5, 0.5, 0.0, 0.0))), Levels((1.0, 1.0, 1.0, 1.0))
    if not isinstance(kernel, (IMH, ISIR)):
        kernel = replace(kernel, local=Metropolis(width=0.1))
    with pytest.raises(ValueError, match=r"chain 8 log_prob of Steps is -inf"):
        kernel.init(target, torch.tensor([[0.1], [0.9]]), seed=0, first_chain=7)
    far = FunctionTarget(lambda x: x.sum(1).log(), (2,))
    with pytest.raises(ValueError, match="x0 has no finite log_prob"):
        make(WRONG).init(far, torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), seed=0)
    with pytest.raises(ValueError, match=r"takes spins of length 1 off their spheres"):
        make(WRONG).init(ON((4, 4), 2, 0.5), torch.ones(2, 4, 4, 2) / 2**0.5, seed=0)


# ---------------------------------------------------------------------------- angles
def wave(x):
    return 2 * torch.cos(x[:, 0] - 1) + torch.cos(x[:, 1] - x[:, 0])


def walled(low, high):
    """`wave` between low and high, 0 elsewhere: of the flow's box, or of another."""

    def log_prob(x):
        return torch.where(((x >= low) & (x <= high)).all(1), wave(x), -math.inf)

    return FunctionTarget(log_prob, (2,))


def from_angles(make, target, x):
    kernel = make(CircularSplineFlow(2, 2, 8).to(x.dtype))
    if isinstance(kernel, Importance):
        return kernel.sample(target, 64, seed=0, dtype=x.dtype)
    return kernel.step(target, kernel.init(target, x, seed=0), 2)


USERS = [
    IMH, ISIR, lambda flow: AdaptiveMCMC(flow, MALA(0.1)), lambda flow: Ex2MCMC(flow, 4, MALA(0.1)),
    lambda flow: Neutra(MALA(0.1), flow), Importance,
]  # fmt: skip


@pytest.mark.parametrize("make", USERS)
def test_a_flow_of_angles_wants_a_periodic_target(make):
    x = torch.tensor([[0.4, 0.3], [-2.0, 1.0]])
    periodic = FunctionTarget(wave, (2,))
    from_angles(make, periodic, x)
    from_angles(make, periodic, x.double())
    from_angles(make, periodic, x + 3)  # outside [−π, π) an angle is what it is inside
    beta = torch.ones(64 if make is Importance else 2)
    from_angles(make, Tempered(periodic, beta), x)
    line = FunctionTarget(lambda x: wave(x) - (x[:, 1] - 2) ** 2 / 8, (2,))
    for other in (line, Tempered(line, beta), walled(-4, 4), walled(0, 2 * math.pi)):
        with pytest.raises(ValueError, match=r"target must have the period 2π in coordinate [01]"):
            from_angles(make, other, x.abs())


@pytest.mark.parametrize("make", USERS)
def test_a_target_between_walls_is_one_of_angles(make):
    x = torch.tensor([[0.4, 0.3], [-2.0, 1.0]])
    from_angles(make, walled(-math.pi, math.pi), x)
    if make is not Importance:  # its points are all inside
        wide = FunctionTarget(lambda x: wave(x) - torch.where(x[:, 0] > 9, math.inf, 0.0), (2,))
        with pytest.raises(ValueError, match=r"in coordinate 0, .* at 4 log_prob is .* -inf"):
            from_angles(make, wide, torch.tensor([[4.0, 0.3], [-2.0, 1.0]]))


def test_only_angles_must_be_periodic_and_the_check_costs_little():
    flow = CircularSplineFlow(
        2, 2, 8, circular=[1], base=Product(Normal(1), Torus(1), (1,))
    )  # fmt: skip
    target = Counted(FunctionTarget(lambda x: torch.cos(x[:, 1]) - x[:, 0] ** 2, (2,)))
    x = torch.linspace(-1, 1, 40).reshape(20, 2)
    IMH(flow).init(target, x, seed=0)
    assert target.evaluations == 20 + 8 * (1 + 2)
    # a symmetric one is found by the shift to the other side
    line = FunctionTarget(lambda x: -((x - math.pi) ** 2).sum(1), (2,))
    with pytest.raises(ValueError, match=r"at 0 log_prob is -19\.7392, at -6\.28319 -98\.696"):
        IMH(flow).init(line, torch.zeros(3, 2), seed=0)


def test_kernels_that_keep_more_than_a_point_are_refused():
    kernel = AdaptiveMCMC(WRONG, ParallelTempering(MALA(0.1), betas=(1.0, 0.5)))
    with pytest.raises(TypeError, match=r"local must keep nothing in State\.aux"):
        kernel.init(NORMAL, torch.zeros(2, 2), seed=0)
    with pytest.raises(TypeError, match=r"kernels must keep nothing in State\.aux"):
        Cycle(IMH(WRONG), MALA(0.1)).init(NORMAL, torch.zeros(2, 2), seed=0)
    with pytest.raises(ValueError, match="state has no log_q"):
        IMH(WRONG).step(NORMAL, MALA(0.1).init(NORMAL, torch.zeros(2, 2), seed=0))


@dataclass(frozen=True)
class Shapeless(Steps):
    shapes: list = field(default_factory=list, compare=False)

    def sample(self, n, *, seed, first_chain, device, dtype):
        return torch.zeros(n, 2, dtype=dtype)


def test_draws_of_another_shape_are_refused():
    kernel = IMH(Shapeless())
    state = kernel.init(Levels(), torch.full((4, 1), 0.1), seed=0)
    with pytest.raises(ValueError, match=r"Shapeless.sample must return .* shape \(4, 1\), got"):
        kernel.step(Levels(), state)


def test_a_proposal_that_changed_is_seen_after_refresh():
    flow = learned()
    kernel = IMH(flow)
    state = kernel.init(NORMAL, NORMAL.sample(4, seed=1), seed=2)
    with torch.no_grad():
        flow.weights *= 1.5
    fresh = kernel.refresh(state)
    assert not torch.allclose(fresh.aux["log_q"], state.aux["log_q"])
    assert torch.allclose(fresh.aux["log_q"], flow.log_prob(state.x), atol=1e-5)
