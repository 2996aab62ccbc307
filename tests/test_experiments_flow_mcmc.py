"""`pysamp reproduce flow_mcmc/…`: maps, the protocol of the paper's chains, every experiment in seconds."""

import dataclasses
import json
import math

import pytest
import torch
from scipy import stats
from test_experiments_flow_mcmc_learned import TINY as LEARNED
from test_german import DATA, written

from pysamp import experiments
from pysamp.experiments import base
from pysamp.experiments.flow_mcmc import adaptive_phi4, common, funnel, phi4, three_gaussians
from pysamp.mcmc import IMH, MALA
from pysamp.nets import Normal, RealNVP, check_invertible
from pysamp.nets.analytic import FunnelFlow
from pysamp.samplers import FlowMCMC
from pysamp.targets import Funnel, Gaussian, Phi4Chain

# Sizes at which an experiment runs in a second or two; its rows then need not pass.
TINY = {
    "flow_mcmc/adaptive_phi4": {
        "sizes": (adaptive_phi4.Sizes(4, 3, 16, 60, 200, 200, 2, 0.2),), "n_chains": 20,
        "n_draws": 50, "n_flow": 50,
    },
    "flow_mcmc/funnel": {
        "dims": (4,), "betas": (1.0, 0.5), "methods": common.METHODS, "n_chains": 4,
        "n_directions": 4, "accept_chains": 64, "accept_steps": 4, "steps": 24,
    },
    "flow_mcmc/german_credit": {
        "reference_chains": 8, "reference_draws": 24, "reference_warmup": 20, "trajectory": 0.2,
        "n_steps": 4, "batch": 16, "n_walkers": 16, "n_chains": 4, "warmup": 8, "n_draws": 8,
        "candidates": 4, "n_local": 2, "n_importance": 64, "neutra_draws": 8,
    },
    "flow_mcmc/phi4": {
        "trainings": (
            phi4.Training(4, 3, 16, 3, 150, 1e-2, 1.0, 200, 200, use_flow=True, lag=2,
                          candidates=10, accept=0.2),
        ),
        "n_chains": 32, "n_imh": 60, "n_isir": 20, "n_neutra": 20, "n_steps": 120, "n_local": 2,
        "n_importance": 500,
    },
    "flow_mcmc/three_gaussians": {
        "dims": (4,), "maps": ("1/2", "0"), "methods": common.METHODS, "n_chains": 4,
        "n_directions": 4, "steps": 30,
    },
}  # fmt: skip


# ------------------------------------------------------------------------------------- maps
def test_the_three_gaussians_are_those_of_the_maps():
    for dim in (2, 16):
        covariance = three_gaussians.target(dim).covariance
        values = torch.linalg.eigvalsh(covariance)
        torch.testing.assert_close(values, torch.logspace(-1, 1, dim).double(), rtol=1e-6, atol=0)
        # Turned by π/4: the first and the last coordinate share the extreme variances.
        assert float(covariance[0, 0]) == pytest.approx(5.05) == float(covariance[-1, -1])
        assert float(covariance[0, -1]) == pytest.approx(-4.95)
        known = {"1/2": covariance, "0": 0.1 * torch.eye(dim), "1": 10 * torch.eye(dim)}
        for name, expected in known.items():
            flow = three_gaussians.flow_of(dim, name)
            gaussian = Gaussian(torch.zeros(dim), expected)
            x = flow.sample(20, seed=1)
            check_invertible(flow, x)
            torch.testing.assert_close(flow.log_prob(x), gaussian.log_prob(x))
        third = three_gaussians.linear_map(dim, 1 / 3)
        ends = [three_gaussians.linear_map(dim, t) for t in (0.0, 0.5)]
        torch.testing.assert_close(third, ends[0] / 3 + 2 * ends[1] / 3)
        later = three_gaussians.linear_map(dim, 5 / 9)
        end = three_gaussians.linear_map(dim, 1.0)
        torch.testing.assert_close(later, end / 9 + 8 * ends[1] / 9)
    assert [three_gaussians.fraction(n) for n in ("0", "4/9", "1/2", "1")] == [0, 4 / 9, 0.5, 1]


@pytest.mark.parametrize(
    "dim, beta", [(2, 4.0), (16, 2.0), (16, 0.5), (16, 1.5), (64, 1.2), (9, 1.0)]
)
def test_the_exact_acceptance_is_an_incomplete_beta_function(dim, beta):
    n, wide = dim - 1, max(beta, 1 / beta)
    expected = 2 * stats.beta.cdf(1 / (1 + wide), n / 2, n / 2)
    assert funnel.exact_acceptance(dim, beta) == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------------------------------- chains
def test_steps_adapt_as_published():
    assert common.adapted(0.1, 0.79) == pytest.approx(0.105)
    assert common.adapted(0.1, 0.71) == pytest.approx(0.1 / 1.05)
    assert common.adapted(0.1, 0.77) == common.adapted(0.1, 0.73) == 0.1
    assert common.adapted(1.3, 0.75) == 1.0 and common.adapted(1.3, 0.9) == pytest.approx(1.365)


def test_chains_are_those_of_the_kernels():
    target, flow = Funnel(3), FunnelFlow(3, 1.4).double()
    x0 = flow.sample(5, seed=1)
    sizes = common.Sizes(4, 2, 4, 2)
    found = common.run_chains(common.IMH_, target, flow, sizes, x0, 12, seed=3)
    kernel = IMH(flow)
    _, info = kernel.step(target, kernel.init(target, x0, seed=3), 12, thin=1)
    assert torch.equal(found.x, info.x) and torch.equal(found.accept, info.accept)
    assert math.isnan(found.local_accept)
    # Langevin steps: the first is at h = 0.01, the second at an h changed by the first.
    found = common.run_chains(common.MALA_, target, flow, sizes, x0, 2, seed=3)
    state = MALA(0.01).init(target, x0, seed=3)
    state, info = MALA(0.01).step(target, state)
    assert torch.equal(found.x[:, 0], state.x)
    h = common.adapted(0.01, float(info.accept.mean()))
    state, _ = MALA(h).step(target, state)
    assert h != 0.01 and torch.equal(found.x[:, 1], state.x)


@pytest.mark.parametrize("method", [m for m in common.METHODS if m != common.IS])
def test_every_method_keeps_its_target(method):
    """A wrong flow on a Gaussian: variances stay those of the target, 5 standard errors over chains."""
    target, flow = three_gaussians.target(2), three_gaussians.flow_of(2, "5/9")
    n_chains, n_steps = 256, 60
    x0 = target.sample(n_chains, seed=1, dtype=torch.float64)
    sizes = common.Sizes(5, 3, 5, 3)
    found = common.run_chains(method, target, flow, sizes, x0, n_steps, seed=2)
    assert found.x.shape == (n_chains, n_steps, 2) and found.accept.shape == (n_chains,)
    assert not torch.equal(found.x[:, 0], found.x[:, -1])
    last = found.x[:, -1]
    product = last[:, :, None] * last[:, None, :]
    error = product.std(0) / math.sqrt(n_chains)
    assert bool(((product.mean(0) - target.covariance).abs() < 5 * error).all())


def test_importance_sampling_keeps_its_weights():
    target, flow = three_gaussians.target(2), three_gaussians.flow_of(2, "4/9")
    found = common.run_importance(target, flow, 500, seed=1)
    assert found.x.shape == (1, 500, 2) and found.log_weight.shape == (500,)
    expected = target.log_prob(found.x[0]) - flow.log_prob(found.x[0])
    torch.testing.assert_close(found.log_weight, expected)
    assert float(found.accept[0]) == pytest.approx(found.ess() / 500)
    with pytest.raises(ValueError, match="method must be one of"):
        common.kernel_of("nothing", flow, common.Sizes(4, 2, 4, 2))


def test_errors_of_means_over_chains():
    assert common.mean_error(torch.tensor([1.0, 3.0])) == (2.0, 1.0)
    assert common.mean_error(torch.tensor([0.7])) == pytest.approx((0.7, 0.0))
    assert common.mean_error(torch.tensor([1.0, 1.0 + 1e-15], dtype=torch.float64))[1] == 0.0


# ------------------------------------------------------------------------------------- experiments
def test_every_module_is_an_experiment():
    names = [name for name in experiments.names() if name.startswith("flow_mcmc/")]
    assert names == sorted({*TINY, *LEARNED})
    for name in names:
        experiment = experiments.find(name)
        assert set(experiment.settings) == set(base.SCALES)
        assert 0 < len(experiment.title) < 80 and 0 < len(experiment.source) <= 100


@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_run(name, tmp_path, monkeypatch):
    experiment = experiments.find(name)
    tiny = dataclasses.replace(experiment.settings["quick"], **TINY[name])
    monkeypatch.setitem(experiment.settings, "quick", tiny)
    if name == "flow_mcmc/three_gaussians":  # rows of a size that the table does not have
        table = {
            (4, "1/2"): three_gaussians.TABLE[16, "1/2"],
            (4, "0"): three_gaussians.TABLE[16, "0"],
        }
        monkeypatch.setattr(three_gaussians, "TABLE", table)
    said = []
    given = {"data": written(tmp_path).parent} if experiment.data else {}
    report = experiments.reproduce(name, seed=1, out=tmp_path, progress=said.append, **given)
    assert said and report["rows"]
    text = experiments.text(report)
    assert max(map(len, text.splitlines())) <= 100
    assert len({row["quantity"] for row in report["rows"]}) == len(report["rows"])
    assert all(math.isfinite(row["ours"]) for row in report["rows"])
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["settings"] == json.loads(json.dumps(dataclasses.asdict(tiny)))
    if "d = 4" in saved["data"]:
        measured = {key.split(", ")[1] for key in saved["data"]["d = 4"]}
        assert measured == set(common.METHODS)
    for figure in saved["figures"]:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


def test_walkers_that_are_watched_are_those_of_the_sampler():
    """The loop that looks at the modes in each step trains the same flow, to the bit."""
    size = adaptive_phi4.Sizes(4, 2, 8, 12, 40, 40, 2, 0.2)
    target, ones = Phi4Chain(4), torch.ones(4)
    for kind in (adaptive_phi4.INFORMED, adaptive_phi4.LOCAL):
        found = adaptive_phi4.trained(kind, size, target, 10, 3, None)
        base = Normal.from_precision(target.coupled_precision)
        sampler = FlowMCMC(
            RealNVP(4, 2, 8, base=base, seed=3), n_walkers=40, batch=40, n_steps=12, lag=2,
            start=torch.stack([-ones] * 9 + [ones]), use_flow=kind != adaptive_phi4.LOCAL,
        )  # fmt: skip
        known = sampler.train(target, seed=3)
        assert torch.equal(found.found.walkers, known.walkers)
        states = zip(found.found.flow.parameters(), known.flow.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in states)
        assert found.plus.shape == (12,) and float(found.plus[0]) == pytest.approx(0.1)


def test_the_width_of_a_mode_is_that_of_the_specification():
    """8.3: √2 sd(φ_mid | +) at N = 64, from .13662."""
    assert phi4.exact_width(Phi4Chain(64)) == pytest.approx(math.sqrt(2) * 0.13662, abs=2e-5)


@pytest.mark.parametrize("name", ["4/9", "1/3"])
def test_independent_proposals_come_out_as_in_the_table(name):
    """Part of check 7: the sliced TV and the acceptance of IMH at d = 16, of 16 chains."""
    settings = dataclasses.replace(
        three_gaussians.EXPERIMENT.settings["quick"], dims=(16,), maps=(name,), methods=(common.IMH_,),
        n_chains=16, n_directions=16,
    )  # fmt: skip
    outcome = three_gaussians.run(settings, seed=3, device=None, progress=lambda line: None)
    assert len(outcome.rows) == 3 and all(row.ok for row in outcome.rows), outcome.rows


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_reproduce_what_is_known(name, tmp_path):
    """Checks 4, 7, 8 and (ii) of the specification, and A.7 (1) to (4)."""
    experiment, given = experiments.find(name), {}
    if experiment.data:
        given = {"data": DATA.parent}
        if missing := [file for file in experiment.data if not (DATA.parent / file).is_file()]:
            pytest.skip(f"needs {', '.join(missing)}")
    report = experiments.reproduce(name, out=tmp_path, **given)
    missed = [row for row in report["rows"] if not row["ok"]]
    assert report["ok"] and not missed, experiments.text(report)
