"""Chains in the latent space of a flow: the pulled-back density, neutra, transport elliptical slices.

The density is held against its formula and finite differences, the kernels against exact draws with a flow
that is deliberately wrong (check 5 of Grenioux et al. 2023). Bounds are 5 standard errors.
"""

import itertools
import math

import pytest
import torch

from pysamp import chains, metrics, store
from pysamp.mcmc import HMC, MALA, Cycle, Metropolis, ParallelTempering, warm_up
from pysamp.mcmc.independent import IMH, ISIR
from pysamp.mcmc.mixed import Ex2MCMC
from pysamp.mcmc.neutra import Neutra, PulledBack, TransportSlice
from pysamp.nets import Compose, Flow, Normal, Torus
from pysamp.nets.analytic import FunnelFlow, LinearFlow
from pysamp.nets.coupling import AffineCoupling
from pysamp.nets.realnvp import RealNVP
from pysamp.sampling import resume, sample
from pysamp.target import Counted, FunctionTarget, Tempered, Tilted, log_prob_and_score
from pysamp.targets import ON, Funnel, Gaussian, Phi4Chain

F64 = torch.float64
NORMAL = Gaussian(torch.zeros(2), 1.0)


def wrong(dtype=torch.float32, base=None) -> Flow:
    """Of the standard normal in two dimensions."""
    return LinearFlow(1.5 * torch.eye(2), torch.tensor([0.3, 0.3]), base).to(dtype)


def learned(dtype=torch.float32, dim=2) -> Flow:
    return RealNVP(dim, n_blocks=2, hidden=16, init_scale=1.0, seed=3).to(dtype)


def layered(dtype=torch.float32) -> Flow:
    layers = [AffineCoupling(2, (k,), 16, init_scale=1.0, seed=3, index=k) for k in range(2)]
    return Compose(*layers, event_shape=2).to(dtype)


FLOWS = {"analytic": wrong, "native": learned, "torch": layered}


def kernels(flow) -> dict:
    inner = Ex2MCMC(LinearFlow(1.3 * torch.eye(2)).to(flow.like.dtype), 4, MALA(step_size=0.4), 2)
    return {
        "mala": Neutra(MALA(step_size=0.4), flow),
        "hmc": Neutra(HMC(step_size=0.4, n_leapfrog=3), flow),
        "metropolis": Neutra(Metropolis(width=1.0), flow),
        "cycle": Neutra(Cycle(MALA(step_size=0.4), Metropolis(width=1.0)), flow),
        "ex2": Neutra(inner, flow),
        "slice": TransportSlice(flow),
    }


NAMES = list(kernels(wrong()))


# ---------------------------------------------------------------------------- the latent density
@pytest.mark.parametrize("name", FLOWS)
def test_latent_density_is_the_formula(name):
    flow = FLOWS[name](F64)
    target = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[2.0, 0.4], [0.4, 0.7]]))
    pulled = PulledBack(target, flow)
    z = torch.linspace(-2, 2, 14, dtype=F64).reshape(7, 2)
    assert pulled.event_shape == (2,)

    def jacobian(point):
        return torch.autograd.functional.jacobian(lambda p: flow.forward(p[None])[0][0], point)

    log_det = torch.stack([torch.linalg.slogdet(jacobian(point))[1] for point in z])
    x = flow.forward(z)[0].detach()
    value, score = log_prob_and_score(pulled, z)
    assert torch.allclose(value, target.log_prob(x) + log_det, rtol=0, atol=1e-10)
    with torch.no_grad():
        assert torch.allclose(pulled.log_prob(z), value, rtol=0, atol=1e-12)
    leaf = z.clone().requires_grad_(True)
    (graph,) = torch.autograd.grad(pulled.log_prob(leaf).sum(), leaf)
    assert torch.allclose(score, graph, atol=1e-10)
    for i in range(2):
        step = torch.zeros(2, dtype=F64)
        step[i] = 1e-5
        with torch.no_grad():
            slope = (pulled.log_prob(z + step) - pulled.log_prob(z - step)) / 2e-5
        assert torch.allclose(slope, score[:, i], rtol=1e-5, atol=1e-7)


def test_a_flow_that_fits_makes_the_latent_density_normal():
    funnel, flow = Funnel(5), FunnelFlow(5).double()
    z = Normal(5).draw(20, seed=1, dtype=F64)
    difference = PulledBack(funnel, flow).log_prob(z) - Normal(5).log_prob(z)
    assert torch.allclose(difference, difference[:1].expand(20), rtol=0, atol=1e-12)


def test_no_graph_goes_through_the_target_and_all_is_counted():
    target = Phi4Chain(6)
    counted = Counted(target)
    pulled = PulledBack(counted, learned(dim=6))
    z = torch.zeros(5, 6)
    pulled.log_prob_and_score(z)
    assert (counted.evaluations, counted.gradients) == (5, 5)
    with torch.no_grad():
        pulled.log_prob(z)
    assert (counted.evaluations, counted.gradients) == (10, 5)


def test_events_of_any_shape():
    target = Gaussian(torch.arange(6.0).reshape(2, 3), 0.5)
    flow = learned(dim=(2, 3))
    s = sample(target, Neutra(MALA(), flow), n_chains=40, n_draws=100, warmup=200, progress=False)
    assert s.x.shape == (40, 100, 2, 3)
    mean = s.x.double().mean(1)
    error = mean.std(0) / math.sqrt(40)
    assert bool(((mean.mean(0) - target.mean).abs() < 5 * error).all())


# ---------------------------------------------------------------------------- invariance
def assert_standard_normal(x):
    n = len(x)
    for u in torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=F64):
        distance = float(metrics.ks_against(x.double() @ u, torch.special.ndtr))
        assert math.sqrt(n) * distance < 2.7
    for i, j, expected in ((0, 0, 1.0), (1, 1, 1.0), (0, 1, 0.0)):
        values = x[:, i].double() * x[:, j].double()
        assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / math.sqrt(n)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", ["analytic", "native"])
def test_law_is_invariant_with_a_wrong_flow(name, flow):
    """Slices with p_z for a likelihood would leave the variance 1/(1 + 1/1.5²) after the first step."""
    kernel = kernels(FLOWS[flow]())[name]
    x = NORMAL.sample(10_000, seed=1)
    state, info = kernel.step(NORMAL, kernel.init(NORMAL, x, seed=2), 4)
    assert float((state.x != x).any(1).double().mean()) > 0.8
    assert float(info.accept.mean()) > 0.3
    assert_standard_normal(state.x)
    assert torch.allclose(state.log_prob, NORMAL.log_prob(state.x), atol=2e-5)


@pytest.mark.parametrize("base", [
    Normal(mean=torch.tensor([1.0, -2.0]), covariance=torch.tensor([0.5, 3.0])),
    Normal.from_precision(torch.tensor([[2.0, -0.8], [-0.8, 1.0]])),
])  # fmt: skip
def test_slices_know_the_mean_and_covariance_of_their_base(base):
    kernel = TransportSlice(wrong(base=base))
    state = kernel.init(NORMAL, NORMAL.sample(10_000, seed=1), seed=2)
    state, info = kernel.step(NORMAL, state, 4)
    assert_standard_normal(state.x)
    assert bool((info.accept == 1).all())
    assert 1 <= float(info.extra["tries"].min()) <= float(info.extra["tries"].max()) < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_moments_after_a_long_run_with_a_wrong_flow(name):
    """Check 5: 64 chains of 5000 steps, mean within .02 and variance within .03."""
    s = sample(NORMAL, kernels(wrong())[name], n_chains=64, n_draws=5000, warmup=10, progress=False)
    x = s.x.double().flatten(0, 1)
    assert float(x.mean(0).abs().max()) < 0.02
    assert float((x.var(0) - 1).abs().max()) < 0.03


def test_neutra_is_the_inner_kernel_on_the_latent_density():
    flow, kernel = learned(F64), HMC(step_size=0.3, n_leapfrog=4)
    x = NORMAL.sample(6, seed=1, dtype=F64)
    z = flow.inverse(x)[0].detach()
    inner, told = kernel.step(
        PulledBack(NORMAL, flow), kernel.init(PulledBack(NORMAL, flow), z, seed=4), 5
    )
    neutra = Neutra(kernel, flow)
    state, info = neutra.step(NORMAL, neutra.init(NORMAL, x, seed=4), 5)
    assert torch.equal(state.aux["z"], inner.x)
    assert torch.equal(info.accept, told.accept)
    assert torch.allclose(state.x, flow.forward(inner.x)[0], atol=1e-12)
    assert state.score is None


# ---------------------------------------------------------------------------- what changes nothing
def assert_same(a, b):
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.log_prob, b.log_prob)
    assert a.aux.keys() == b.aux.keys()
    assert all(torch.equal(a.aux[key], b.aux[key]) for key in a.aux)
    assert a.step == b.step


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", ["native", "torch"])
def test_fused_steps_equal_single_steps(name, flow, dtype):
    kernel = kernels(FLOWS[flow](dtype))[name]
    first = kernel.init(NORMAL, NORMAL.sample(5, seed=1, dtype=dtype), seed=9)
    fused, info = kernel.step(NORMAL, first, 6, thin=2)
    state = first
    for k in range(6):
        state, _ = kernel.step(NORMAL, state)
        if k % 2:
            assert torch.equal(info.x[:, k // 2], state.x)
            assert torch.equal(info.log_prob[:, k // 2], state.log_prob)
    assert_same(fused, state)
    assert torch.equal(kernel.step(NORMAL, first, 6)[0].x, fused.x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", ["native", "torch"])
def test_splitting_the_batch_changes_nothing(name, flow, dtype):
    kernel = kernels(FLOWS[flow](dtype))[name]
    x = NORMAL.sample(11, seed=1, dtype=dtype)
    whole, info = kernel.step(NORMAL, kernel.init(NORMAL, x, seed=9), 5)
    for rows in (slice(0, 4), slice(4, 11)):
        start = kernel.init(NORMAL, x[rows], seed=9, first_chain=rows.start)
        part, other = kernel.step(NORMAL, start, 5)
        assert torch.equal(part.x, whole.x[rows])
        assert torch.equal(other.accept, info.accept[rows])


def test_values_for_each_chain_go_with_their_chain():
    beta = torch.tensor([0.5, 1.0, 2.0])
    centre = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-1.0, 3.0]])
    proposal = LinearFlow(1.3 * torch.eye(2))
    inner = (MALA(0.3), IMH(proposal), ISIR(proposal, 4), Ex2MCMC(proposal, 4, MALA(0.3), 2))
    for kernel, tilted in itertools.product(
        (*(Neutra(one, wrong()) for one in inner), TransportSlice(wrong())), (False, True)
    ):
        whole = Tilted(NORMAL, centre, 1.5) if tilted else Tempered(NORMAL, beta)
        state = kernel.init(whole, torch.zeros(3, 2), seed=3)
        state, _ = kernel.step(whole, state, 4)
        for i in range(3):
            alone = Tilted(NORMAL, centre[i], 1.5) if tilted else Tempered(NORMAL, float(beta[i]))
            one = kernel.init(alone, torch.zeros(1, 2), seed=3, first_chain=i)
            one, _ = kernel.step(alone, one, 4)
            assert torch.allclose(one.x[0], state.x[i], atol=1e-6)


# ---------------------------------------------------------------------------- through sample()
@pytest.mark.parametrize("make", [
    lambda flow: Neutra(MALA(), flow),
    lambda flow: Neutra(HMC(n_leapfrog=3, inverse_mass="adapt"), flow),
    TransportSlice,
])  # fmt: skip
def test_sample_and_resume(make, tmp_path, monkeypatch):
    monkeypatch.setattr("pysamp.plan.BLOCK_STEPS", 10)
    sizes = {"n_chains": 5, "n_draws": 40, "warmup": 30, "seed": 4, "progress": False}
    s = sample(NORMAL, make(learned()), **sizes)
    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    saved, path = store.save_checkpoint, tmp_path / "run"

    def dies(folder, part, checkpoint):
        saved(folder, part, checkpoint)
        if checkpoint.n_draws >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt):
        sample(NORMAL, make(learned()), **sizes, out=path)
    monkeypatch.setattr(store, "save_checkpoint", saved)
    with pytest.raises(ValueError, match=r"flow is the network .*RealNVP"):
        resume(path, progress=False)
    again = resume(path, sampler=make(learned()), progress=False)
    assert torch.equal(again.x, s.x)
    assert torch.equal(again.log_prob, s.log_prob)


def test_scale_and_masses_are_adapted_in_latent_space():
    """The target is N(0, diag(1, 100²)), the flow diag(1, 10): in z the variances are 1 and 100."""
    target = Gaussian(torch.zeros(2), torch.tensor([1.0, 1e4]))
    inner = HMC(trajectory_length=1.5, inverse_mass="adapt")
    kernel = Neutra(inner, LinearFlow(torch.diag(torch.tensor([1.0, 10.0]))))
    state = kernel.init(target, target.sample(64, seed=1), seed=2)
    tuned, state, report = warm_up(kernel, target, state, 150)
    assert report["accept"] == pytest.approx(0.8, abs=0.07)
    assert report["inverse_mass"] == pytest.approx([1.0, 100.0], rel=0.3)
    assert state.aux["latent_inverse_mass"][0].tolist() == pytest.approx(
        report["inverse_mass"], rel=1e-6
    )
    assert tuned.kernel.step_size == report["scale"]


def test_neutra_finds_what_a_bad_metric_hides():
    """Plain MALA on the funnel of 10 dimensions does not reach its neck; with its flow it is a normal."""
    s = sample(
        Funnel(10), Neutra(MALA(), FunnelFlow(10)), n_chains=64, n_draws=500, warmup=200, progress=False
    )  # fmt: skip
    first = s.x[..., 0].double()
    error = float(metrics.mcse(first))
    assert abs(float(first.mean())) < 5 * error
    assert abs(float(first.var()) - 3) < 5 * float(metrics.mcse(first**2))


# ---------------------------------------------------------------------------- bad input
class Sideways(Flow):
    """Its inverse is that of another map."""

    def transform(self, z):
        return 2 * z, z.new_full((len(z),), self.dim * math.log(2))

    def untransform(self, x):
        return x / 2.1, x.new_full((len(x),), -self.dim * math.log(2.1))


def on_the_torus() -> Flow:
    return LinearFlow(torch.eye(2), base=Torus(2))


@pytest.mark.parametrize("make, kind, text", [
    (lambda: Neutra(MALA(0.1), torch.nn.Linear(2, 2)), TypeError, "flow must be a .*Flow"),
    (lambda: Neutra(MALA, wrong()), TypeError, "kernel must be a kernel"),
    (lambda: Neutra(ParallelTempering(MALA(0.1)), wrong()), TypeError, "got ParallelTempering"),
    (lambda: Neutra(TransportSlice(wrong()), wrong()), TypeError, "got TransportSlice"),
    (lambda: TransportSlice(on_the_torus()), ValueError, "normal base density .* got Torus"),
    (lambda: PulledBack(Gaussian(torch.zeros(3), 1.0), wrong()), ValueError, r"\(3,\), got \(2,\)"),
    (lambda: PulledBack(ON((2,), 2, 0.5), learned(dim=(2, 2))), ValueError, "off their spheres"),
])  # fmt: skip
def test_bad_arguments(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


@pytest.mark.parametrize("make", [lambda flow: Neutra(MALA(0.1), flow), TransportSlice])
def test_bad_starts(make):
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"event shape of the target, \(2,\), got \(3,\)"):
        make(LinearFlow(torch.eye(3))).init(NORMAL, x, seed=0)
    with pytest.raises(ValueError, match="flow does not invert"):
        make(Sideways(2)).init(NORMAL, x + 1, seed=0)
    far = FunctionTarget(lambda x: x.sum(1).log(), (2,))
    with pytest.raises(ValueError, match="x0 has no finite log_prob in 1 of 2 chains: chain 8"):
        make(wrong()).init(far, torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), seed=0, first_chain=7)
    with pytest.raises(ValueError, match="state has no"):
        make(wrong()).step(NORMAL, MALA(0.1).init(NORMAL, x, seed=0))


def test_slices_refuse_points_without_a_density_and_count_them():
    """log p is NaN beyond 1 and +∞ below −1: slices stay between, where the law is the normal one."""

    def log_prob(x):
        inside = -0.5 * x.square().sum(1)
        above = torch.where(x[:, 0] > 1, math.nan, inside)
        return torch.where(x[:, 0] < -1, math.inf, above)

    kernel, target = TransportSlice(wrong()), FunctionTarget(log_prob, (2,))
    state = kernel.init(target, torch.zeros(4000, 2), seed=1)
    state, info = kernel.step(target, state, 15)
    x = state.x.double()
    assert float(x[:, 0].abs().max()) <= 1
    assert float(info.extra["nonfinite"].mean()) > 1
    assert bool(torch.isfinite(state.log_prob).all())
    edge = math.erf(1 / math.sqrt(2))
    variance = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / edge
    assert abs(float(x[:, 0].var()) - variance) < 5 * variance * math.sqrt(2 / 4000)
    assert abs(float(x[:, 1].var()) - 1) < 5 * math.sqrt(2 / 4000)
