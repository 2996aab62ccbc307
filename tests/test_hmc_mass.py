"""HMC with masses and jittered trajectories: exact identities, invariance, adaptation in warm-up."""

import math

import pytest
import torch

from pysamp import backend, chains, metrics, rng, store
from pysamp.describe import describe, rebuild
from pysamp.mcmc import HMC, ParallelTempering, warm_up
from pysamp.mcmc.hmc import MAX_LEAPFROG
from pysamp.mcmc.mixed import Ex2MCMC
from pysamp.nets.analytic import LinearFlow
from pysamp.sampling import resume, sample
from pysamp.target import Counted
from pysamp.targets import Gaussian, GaussianMixture, Phi4Chain

F64 = torch.float64
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.0], [1.5, 1.0]]), torch.tensor([[0.5, 1.5], [0.3, 0.4]]),
    torch.tensor([0.3, 0.7]),
)  # fmt: skip
SPREAD = torch.tensor([1e-4, 1.0, 1e4])
WIDE = Gaussian(torch.tensor([0.0, 5.0, -100.0]), SPREAD)


def run(kernel, target, x, n=5, **how):
    return kernel.step(target, kernel.init(target, x, seed=3), n, **how)


def test_masses_of_one_number_are_another_step_size(dtype):
    """M⁻¹ = 4 is ε twice as large, to the last bit, as 2 is a power of two."""
    x = MIXTURE.sample(7, seed=1, dtype=dtype)
    for inverse_mass in (torch.full((2,), 4.0), torch.tensor([4.0, 4.0], dtype=F64), [4.0, 4.0]):
        a, told = run(HMC(0.25, 4, inverse_mass=inverse_mass), MIXTURE, x)
        with backend("torch"):
            b, info = run(HMC(0.5, 4), MIXTURE, x)
        assert torch.allclose(a.x, b.x, atol=1e-5)
        assert torch.allclose(told.accept, info.accept, atol=1e-4)
    chain = Phi4Chain(5)  # its native chain has the bits of torch
    x = torch.linspace(-1, 1, 15, dtype=dtype).reshape(3, 5)
    a, _ = run(HMC(0.02, 4, inverse_mass=torch.full((5,), 4.0)), chain, x)
    b, _ = run(HMC(0.04, 4), chain, x)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.log_prob, b.log_prob)


def test_masses_undo_a_scaling_of_the_coordinates():
    """Chains of N(0, s²) with M⁻¹ = s² are those of N(0, 1) with masses 1, times s."""
    s = torch.tensor([0.25, 1.0, 8.0], dtype=F64)
    unit, scaled = Gaussian(torch.zeros(3), 1.0), Gaussian(torch.zeros(3), s * s)
    x = unit.sample(6, seed=1, dtype=F64)
    a, told = run(HMC(0.7, 3), unit, x)
    b, info = run(HMC(0.7, 3, inverse_mass=s * s), scaled, x * s)
    assert torch.allclose(a.x * s, b.x, rtol=1e-12, atol=1e-12)
    assert torch.allclose(told.accept, info.accept, rtol=1e-10)


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize("kernel", [
    HMC(0.4, 3, inverse_mass=torch.tensor([0.4, 2.0])),
    HMC(0.5, trajectory_length=1.5),
    HMC(0.5, trajectory_length=1.5, inverse_mass=torch.tensor([0.4, 2.0])),
    HMC(torch.linspace(0.3, 0.6, 10_000), trajectory_length=1.5),
], ids=["mass", "length", "both", "step per chain"])  # fmt: skip
def test_law_is_invariant(kernel, way):
    """From exact draws; by the distribution functions of the coordinates and second moments."""
    x = MIXTURE.sample(10_000, seed=1)
    with backend(way):
        state, info = run(kernel, MIXTURE, x)
    assert float((state.x != x).any(1).double().mean()) > 0.95
    assert 0.5 < float(info.accept.mean()) < 0.999
    w, m = MIXTURE.weights, MIXTURE.means
    for i in range(2):
        sd = MIXTURE.covariances.reshape(2, -1).expand(2, 2)[:, i].sqrt()
        values = state.x[:, i].double()

        def cdf(t, i=i, sd=sd):
            return (w * torch.special.ndtr((t[:, None] - m[:, i]) / sd)).sum(1)

        assert math.sqrt(10_000) * float(metrics.ks_against(values, cdf)) < 2.7
        second = float((w * (sd**2 + m[:, i] ** 2)).sum())
        assert abs(float((values**2).mean()) - second) < 5 * float((values**2).std()) / 100


def test_lengths_of_trajectories_are_drawn_anew_and_shared():
    """⌊2 u τ/ε⌋ steps: gradients say how many; one step size or many, native or not, agree."""
    target = Counted(Phi4Chain(4))
    x = torch.zeros(3, 4)
    kernel = HMC(0.01, trajectory_length=0.1)
    start = kernel.init(target, x, seed=3)
    made = []
    state = start
    for step in range(12):
        before = target.gradients
        state, _ = kernel.step(target, state)
        made.append((target.gradients - before) // 3)
        u = rng.uniform((1, 1), seed=3, stream="momentum", step=step, substep=1, dtype=F64)
        assert made[-1] == max(1, int(2 * float(u) * 0.1 / 0.01))
    assert 1 <= min(made) < 6 < 14 < max(made) <= 20
    fused, info = kernel.step(target, start, 12, thin=4)
    assert torch.equal(fused.x, state.x)
    assert torch.equal(info.x[:, -1], state.x)
    with backend("torch"):
        assert torch.equal(kernel.step(target, start, 12)[0].x, state.x)
    each = HMC(torch.full((3,), 0.01, dtype=F64), trajectory_length=0.1)
    assert torch.equal(each.step(target, start, 12)[0].x, state.x)
    part = kernel.init(target, x[1:], seed=3, first_chain=1)
    assert torch.equal(kernel.step(target, part, 12)[0].x, state.x[1:])


def test_a_trajectory_has_an_end():
    target = Counted(Phi4Chain(4))
    kernel = HMC(1e-9, trajectory_length=1.0)
    kernel.step(target, kernel.init(target, torch.zeros(1, 4), seed=3))
    assert target.gradients == 1 + MAX_LEAPFROG


@pytest.mark.parametrize("kernel", [
    HMC(n_leapfrog=4, inverse_mass="adapt"),
    HMC(trajectory_length=1.5, inverse_mass="adapt"),
], ids=["steps", "length"])  # fmt: skip
def test_warm_up_finds_masses_and_step(kernel):
    """Variances 1e-4, 1, 1e4: without masses the step is that of the narrowest, a 1e4-th of the widest."""
    x = WIDE.sample(64, seed=1)
    tuned, state, report = warm_up(kernel, WIDE, kernel.init(WIDE, x, seed=2), 200)
    assert state.step == 200
    assert report["inverse_mass"] == pytest.approx(SPREAD.tolist(), rel=0.3, abs=1e-5)
    mass = state.aux["inverse_mass"]
    assert mass.shape == (64, 3)
    assert torch.equal(mass, mass[:1].expand(64, 3))
    assert mass[0].tolist() == pytest.approx(report["inverse_mass"], rel=1e-6)
    assert report["accept"] == pytest.approx(0.8, abs=0.06)
    assert 0.3 < report["scale"] < 3
    _, info = tuned.step(WIDE, state, 100, thin=1)
    spread = info.x.double().var((0, 1))
    assert spread.tolist() == pytest.approx(SPREAD.tolist(), rel=0.1)


def test_masses_of_a_local_kernel_are_adapted():
    """Of the local kernel of a mixture, whose global moves all chains accept."""
    flow = LinearFlow(torch.diag(SPREAD.sqrt()), WIDE.mean)
    kernel = Ex2MCMC(flow, 4, HMC(trajectory_length=1.5, inverse_mass="adapt"), n_local=3)
    state = kernel.init(WIDE, WIDE.sample(64, seed=1), seed=2)
    tuned, state, report = warm_up(kernel, WIDE, state, 200)
    assert report["inverse_mass"] == pytest.approx(SPREAD.tolist(), rel=0.3, abs=1e-5)
    assert report["accept"] == pytest.approx(0.8, abs=0.07)
    assert tuned.local.step_size == report["scale"]


def test_masses_of_a_given_step_size_are_adapted_too():
    kernel = HMC(0.9, 4, inverse_mass="adapt")
    state = kernel.init(WIDE, WIDE.sample(64, seed=1), seed=2)
    tuned, state, report = warm_up(kernel, WIDE, state, 200)
    assert tuned.step_size == 0.9
    assert "scale" not in report
    assert state.aux["inverse_mass"].shape == (64, 3)


def test_any_number_of_processes_finds_the_same_masses():
    """Rows of two halves, gathered: the same bits as of all in one."""
    kernel = HMC(n_leapfrog=3, inverse_mass="adapt")
    x = WIDE.sample(6, seed=1)
    _, whole, report = warm_up(kernel, WIDE, kernel.init(WIDE, x, seed=2), 60)
    halves = [kernel.init(WIDE, x[:2], seed=2), kernel.init(WIDE, x[2:], seed=2, first_chain=2)]
    told = _in_two(kernel, halves)
    for rows, (state, found) in zip((slice(0, 2), slice(2, 6)), told):
        assert torch.equal(state.x, whole.x[rows])
        assert found["inverse_mass"] == report["inverse_mass"]
        assert found["scale"] == report["scale"]


def _in_two(kernel, starts):
    """Warm up two parts in threads that wait for each other where processes would gather."""
    import threading

    barrier, slots, out = threading.Barrier(2, timeout=60), [None, None], [None, None]

    def part(rank):
        def gather(rows):
            slots[rank] = rows
            barrier.wait()
            both = torch.cat([slots[0], slots[1]])
            barrier.wait()
            return both

        _, state, report = warm_up(kernel, WIDE, starts[rank], 60, gather=gather)
        out[rank] = (state, report)

    threads = [threading.Thread(target=part, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in out
    return out


def test_sample_and_resume_with_adapted_masses(tmp_path, monkeypatch):
    kernel = HMC(trajectory_length=1.0, inverse_mass="adapt")
    sizes = {"n_chains": 8, "n_draws": 40, "warmup": 60, "progress": False}
    monkeypatch.setattr("pysamp.plan.BLOCK_STEPS", 10)
    s = sample(WIDE, kernel, **sizes)
    narrow, _, wide = s.info["warm_up"]["inverse_mass"]
    assert narrow < 0.1 < 10 < wide
    monkeypatch.setattr(chains, "CHECKPOINT_SECONDS", 0.0)
    saved = store.save_checkpoint

    def dies(folder, part, checkpoint):
        saved(folder, part, checkpoint)
        if checkpoint.n_draws >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt):
        sample(WIDE, kernel, **sizes, out=tmp_path / "run")
    monkeypatch.setattr(store, "save_checkpoint", saved)
    again = resume(tmp_path / "run", progress=False)
    assert torch.equal(again.x, s.x)
    given = HMC(0.1, trajectory_length=2.0, inverse_mass=torch.tensor([1.0, 2.0]))
    made = rebuild(describe(given))
    assert made.trajectory_length == 2.0
    assert torch.equal(made.inverse_mass, given.inverse_mass)


@pytest.mark.parametrize("make, kind, text", [
    (lambda: HMC(inverse_mass="fit"), ValueError, 'inverse_mass must be None, "adapt"'),
    (lambda: HMC(inverse_mass=torch.tensor([1.0, 0.0])), ValueError, "inverse_mass must be positive"),
    (lambda: HMC(inverse_mass=torch.tensor([1.0, math.inf])), ValueError, "positive and finite"),
    (lambda: HMC(trajectory_length=0.0), ValueError, "trajectory_length must be positive"),
    (lambda: HMC(trajectory_length=math.nan), ValueError, "trajectory_length must be positive"),
    (lambda: HMC(trajectory_length="1"), TypeError, "trajectory_length must be a number"),
    (lambda: HMC(0.1, inverse_mass=torch.ones(3)).init(MIXTURE, torch.zeros(2, 2), seed=0), ValueError,
     r"inverse_mass must have 2 entries, as an event \(2,\) has, got shape \(3,\)"),
    (lambda: ParallelTempering(HMC(0.1, inverse_mass="adapt")).init(MIXTURE, torch.zeros(2, 2), seed=0),
     TypeError, "kernel must keep nothing in State.aux"),
])  # fmt: skip
def test_bad_arguments(make, kind, text):
    with pytest.raises(kind, match=text):
        make()
