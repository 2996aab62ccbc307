"""`pysamp reproduce flow_mcmc/mixture` and `banana`: recipes, training, measuring, runs in seconds."""

import dataclasses
import json
import math

import pytest
import torch
from scipy import integrate, stats

from pysamp import experiments
from pysamp.experiments import base
from pysamp.experiments.flow_mcmc import banana, common, learned, mixture, plane
from pysamp.metrics import sliced_total_variation
from pysamp.nets import RealNVP
from pysamp.nets.analytic import LinearFlow
from pysamp.targets import Banana, FourModes, Gaussian

# Sizes at which an experiment runs in a second or two; its rows then need not pass.
TINY = {
    "flow_mcmc/mixture": {
        "dims": (4, 6), "batch": 256, "steps": 20, "stages": (0.5,), "n_check": 500,
        "stage_methods": (common.IMH_, common.TESS), "plane_steps": 20, "plane_batch": 256,
        "n_chains": 8, "chain_steps": 24,
    },
    "flow_mcmc/banana": {
        "dims": (4,), "stages": (0.0, 0.1, 1.0), "batch": 256, "steps": 20, "n_chains": 4,
        "n_directions": 4, "n_check": 500, "chain_steps": 24,
    },
}  # fmt: skip


# ------------------------------------------------------------------------------------- recipes
def test_recipes_are_the_published_ones():
    """Steps, period, rate, hidden, blocks; and the steps of the checkpoint that chains use."""
    of_mixture = {
        16: (50_000, 100, 1.0e-2, 64, 4, 2500),
        32: (52_666, 106, 7.36e-3, 76, 4, 2633),
        64: (58_000, 120, 3.98e-3, 102, 4, 2900),
        128: (68_666, 146, 1.17e-3, 153, 5, 3433),
        256: (90_000, 200, 1.0e-4, 256, 8, 9000),
    }
    of_banana = {
        16: (1000, 75, 1.0e-2, 64, 3),
        32: (1193, 82, 8.0e-3, 74, 3),
        64: (1580, 96, 5.1e-3, 96, 3),
        128: (2354, 125, 2.1e-3, 139, 5),
        256: (3903, 183, 3.5e-4, 226, 7),
        512: (7000, 300, 1.0e-5, 400, 12),
    }
    for dim, (n_steps, period, rate, hidden, n_blocks, early) in of_mixture.items():
        found = mixture.recipe(dim)
        assert (found.n_steps, found.period, found.hidden, found.n_blocks) == (
            n_steps, period, hidden, n_blocks,
        )  # fmt: skip
        assert found.learning_rate == pytest.approx(rate, rel=0.01) and found.gamma == 0.99
        assert mixture.early(dim) == early
    for dim, (n_steps, period, rate, hidden, n_blocks) in of_banana.items():
        found = banana.recipe(dim)
        assert (found.n_steps, found.period, found.hidden, found.n_blocks) == (
            n_steps, period, hidden, n_blocks,
        )  # fmt: skip
        assert found.learning_rate == pytest.approx(rate, rel=0.02) and found.gamma == 0.98
    for name in TINY:
        paper = experiments.find(name).settings["paper"]
        assert paper.dims == tuple(of_mixture if "mixture" in name else of_banana)
        assert paper.steps is None


# ------------------------------------------------------------------------------------- training
SMALL = learned.Recipe(40, 10, 1e-2, 0.9, 8, 2)


def test_the_forward_loss_is_that_of_new_exact_draws():
    target, flow = FourModes(4), RealNVP(4, 2, 8, init_scale=1.0)
    loss = learned.forward(target, 64, seed=3)
    values = []
    for step in (0, 5):
        x = target.sample(64, seed=3, first_chain=64 * step)
        values.append(float(loss(flow, step).detach()))
        assert values[-1] == pytest.approx(-float(flow.log_prob(x).mean().detach()), rel=1e-6)
    assert values[0] != values[1]


def test_the_backward_loss_has_the_gradient_of_a_graph_through_the_target():
    target, flow = Banana(4), RealNVP(4, 2, 8, init_scale=1.0).double()
    value = learned.backward(target, 32, seed=3)(flow, 2)
    (found,) = torch.autograd.grad(value, flow.weights)
    z = flow.base.draw(32, seed=3, stream="training", step=2, dtype=torch.float64)
    x, log_q = flow.push(z)
    expected = (log_q - target.log_prob(x)).mean()
    (gradient,) = torch.autograd.grad(expected, flow.weights)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, gradient)
    assert float(gradient.abs().max()) > 0.1


def test_flows_are_kept_as_they_were():
    target = Banana(2)
    loss = learned.backward(target, 128, seed=1)

    def run(*stops):
        return learned.trained(SMALL.flow(2, None, None, 0), loss, SMALL, stops)

    whole, part = run(1, 15, 40), run(15)
    assert sorted(whole.flows) == [1, 15, 40] and whole.loss.shape == (40,)
    assert torch.equal(whole.flows[15].weights, part.flows[15].weights)
    assert torch.equal(whole.loss[:15], part.loss)
    assert not torch.equal(whole.flows[15].weights, whole.flows[40].weights)
    assert not whole.flows[15].weights.requires_grad
    first = loss(SMALL.flow(2, None, None, 0), 0)
    assert float(whole.loss[0]) == pytest.approx(float(first.detach()), rel=1e-6)  # no penalty
    assert float(whole.loss[-5:].mean()) < float(whole.loss[0]) - 2


def test_the_penalty_and_the_rate_are_those_of_the_paper():
    """One step of Adam moves each weight by the rate, against the sign of gradient + penalty + L2."""
    target = Gaussian(torch.zeros(2), 1.0)
    flow = SMALL.flow(2, None, None, 0)
    with torch.no_grad():
        flow.weights.copy_(torch.linspace(-1, 1, flow.weights.numel()))
    before = flow.weights.detach().clone()
    value = learned.forward(target, 64, 3)(flow, 0)
    squares = torch.stack([w.square().sum() for w in flow.scale_weights()]).sum()
    (gradient,) = torch.autograd.grad(value + 5e-5 * squares, flow.weights)
    gradient = gradient + 1e-4 * before
    after = learned.trained(flow, learned.forward(target, 64, 3), SMALL, [1]).flows[1].weights
    clear = gradient.abs() > 1e-5
    assert int(clear.sum()) > 50
    moved = (after - before)[clear]
    torch.testing.assert_close(moved, -0.01 * gradient[clear].sign(), rtol=2e-3, atol=0)


def test_the_quality_of_a_flow_that_is_too_wide():
    """N(0, s²) for N(0, 1): acceptance, effective share and divergence in closed form."""
    dim, s, n = 6, 1.2, 40_000
    flow = LinearFlow(s * torch.eye(dim, dtype=torch.float64)).double()
    found = learned.quality(flow, Gaussian(torch.zeros(dim), 1.0), n, seed=2)
    accept = 2 * stats.beta.cdf(1 / (1 + s * s), dim / 2, dim / 2)
    assert abs(found["accept"] - accept) < 5 * found["accept error"] < 0.02
    assert abs(found["log_z"]) < 5 * found["log_z error"] < 0.03
    assert found["ess"] == pytest.approx((math.sqrt(2 * s * s - 1) / s**2) ** dim, abs=0.02)
    divergence = dim * (math.log(s) + 0.5 / s**2 - 0.5)
    assert abs(found["KL(exact|flow)"] - divergence) < 5 * found["KL(exact|flow) error"] < 0.02


# ------------------------------------------------------------------------------------- the mixture
def test_starts_are_exact_draws_of_the_modes():
    target, flow = FourModes(16), RealNVP(16, 2, 8)
    x = mixture.start(target, (500, 500, 500, 500), 4, flow)
    assert x.dtype == torch.float32 and len(torch.unique(x[:, 0])) > 1990
    for k, part in enumerate(x.double().split(500)):
        off = part - target.means[k]
        assert bool((off.mean(0).abs() < 5 / math.sqrt(500)).all())
        assert abs(float(off.square().mean()) - 1) < 5 * math.sqrt(2 / (16 * 500))
    assert mixture.start(target, (6, 0, 0, 0), 4, flow).shape == (6, 16)


def made(x: torch.Tensor, log_weight: torch.Tensor | None = None) -> common.Result:
    return common.Result("made", x.double(), torch.ones(len(x)), math.nan, 1.0, log_weight)


def test_errors_of_mode_weights_are_those_of_chains():
    target = FourModes(2, a=8.0)
    exact = target.sample(4000, seed=1, dtype=torch.float64)
    mine = [exact[target.mode(exact) == k][:200] for k in range(4)]
    balanced = torch.cat([m[:100] for m in mine])
    stuck = torch.cat([mine[2], mine[2]])
    found = mixture.measured(made(torch.stack([balanced, stuck])), target)
    assert found["error"][0] == pytest.approx((0 + 0.75) / 2)
    assert found["shares"] == [[0.25] * 4, [0, 0, 1, 0]]
    assert found["pooled"] == pytest.approx([0.125, 0.125, 0.625, 0.125])
    assert found["largest pooled gap"] == pytest.approx(0.375)
    kl = mixture.within_modes(
        balanced, target.mode(balanced), torch.zeros(400, dtype=torch.float64), target
    )
    assert 0 < kl < 0.2  # 5 / (2 · 100) is expected of exact draws
    alone = mixture.measured(made(stuck[None]), target)
    assert alone["KL in modes, all draws"] == math.inf == alone["KL in modes, median chain"]


def test_importance_weights_count_as_draws():
    target = FourModes(2, a=8.0)
    x = target.means.double().repeat_interleave(2, 0)
    log_weight = torch.tensor([0.4, 0.4, 0.05, 0.05, 0.02, 0.03, 0.05, 0.0]).double().log()
    found = mixture.measured(made(x[None], log_weight), target)
    assert found["pooled"] == pytest.approx([0.8, 0.1, 0.05, 0.05], abs=1e-6)
    assert found["error"] == pytest.approx((0.55, 0.0), abs=1e-6)


def test_changes_of_mode_are_counted_from_the_start():
    target = plane.four_modes()
    jump = target.means[[0, 1, 1, 3]][None].repeat(2, 1, 1)  # a chain of four states
    stay = target.means[[0, 0, 0, 0]][None].repeat(2, 1, 1)
    x0 = target.means[[0, 1]].float()
    chains = {common.NEUTRA: made(stay), common.TESS: made(jump), common.I_SIR: made(jump)}
    found = plane.Plane(target, RealNVP(2, 2, 8), {}, x0, chains)
    # The second chain starts in mode 1 and is in mode 0 a step later.
    assert found.changes(common.NEUTRA) == pytest.approx((1 / 8, 1 / 8))
    assert found.changes(common.TESS)[0] == pytest.approx((2 / 4 + 3 / 4) / 2)


# ------------------------------------------------------------------------------------- bananas
def test_medians_pass_over_a_chain_that_sticks():
    values = torch.tensor([0.10, 0.11, 0.12, 0.13, 1.0])
    median, error = banana.median_error(values)
    assert median == pytest.approx(0.12)
    assert error == pytest.approx(math.sqrt(math.pi / 10) * 1.4826 * 0.01, rel=1e-4)
    x = torch.randn(4000, 25, generator=torch.Generator().manual_seed(1))
    medians, errors = zip(*(banana.median_error(row) for row in x), strict=True)
    spread = torch.tensor(medians).std()
    # 1.4826 · MAD of 25 normal numbers is 3 % too small on average, the asymptotic law 2 % too large.
    assert float(torch.tensor(errors).mean()) == pytest.approx(float(spread), rel=0.1)


def test_variances_and_distances_of_bananas():
    target = Banana(4)
    exact = target.sample(4000, seed=1, dtype=torch.float64)
    settings = dataclasses.replace(experiments.find("flow_mcmc/banana").settings["quick"])
    settings = dataclasses.replace(settings, n_directions=8, n_chains=2, chain_steps=1000)
    x = target.sample(2000, seed=2, dtype=torch.float64).reshape(2, 1000, 4)
    found = banana._measured(made(x), exact, settings)
    of_chains = x[:, :, 1::2].square().mean((1, 2))
    assert found["variance"][0] == pytest.approx(float(of_chains.mean()))
    assert found["tv"][0] == pytest.approx(float(sliced_total_variation(x, exact, 8).mean()))
    # Weights: of two halves, one of them shrunk to nothing, only the weighted one counts.
    both = torch.cat([x[0], 0 * x[0]])[None]
    log_weight = torch.cat([torch.zeros(1000), torch.full((1000,), -800.0)])
    weighted = banana._measured(made(both, log_weight), exact, settings)
    assert weighted["variance"][0] == pytest.approx(float(of_chains[0]))
    assert weighted["tail"][0] == pytest.approx(float((x[0, :, 1::2] > 9).double().mean()))
    row = banana._exact_variance(target, exact)
    assert row.reference == pytest.approx(9.0)
    assert abs(row.difference) < 5 * row.error < 3


def test_the_mass_of_the_tail_is_that_of_a_chi_square():
    """x₁ = z₁ + 2 (z₀² − 1): against the quadrature of scipy and exact draws, 5 standard errors."""
    expected, _ = integrate.quad(
        lambda z: stats.norm.pdf(z) * stats.norm.sf(9 - 2 * (z * z - 1)), -12, 12, points=(-2, 2)
    )
    assert banana.exact_tail() == pytest.approx(expected, rel=1e-6)
    x = Banana(2).sample(200_000, seed=1, dtype=torch.float64)[:, 1]
    error = math.sqrt(expected / 200_000)
    assert abs(float((x > 9).double().mean()) - expected) < 5 * error < 0.1 * expected


def test_the_draws_of_the_flow_are_those_of_the_importance_sampler():
    target, flow = Banana(4), RealNVP(4, 2, 8)
    settings = dataclasses.replace(
        experiments.find("flow_mcmc/banana").settings["quick"], chain_steps=8
    )
    x0 = flow.sample(4, seed=1)
    plain = banana._result(banana.FLOW, target, flow, x0, settings, 5)
    weighted = banana._result(common.IS, target, flow, x0, settings, 5)
    assert plain.x.shape == (1, 8 * 60 // 4, 4) and plain.log_weight is None
    assert torch.equal(plain.x, weighted.x)
    assert weighted.log_weight is not None and weighted.log_weight.std() > 0


# ------------------------------------------------------------------------------------- experiments
@pytest.mark.parametrize("name", sorted(TINY))
def test_experiments_run(name, tmp_path, monkeypatch):
    experiment = experiments.find(name)
    assert set(experiment.settings) == set(base.SCALES)
    assert 0 < len(experiment.title) < 80 and 0 < len(experiment.source) <= 100
    tiny = dataclasses.replace(experiment.settings["quick"], **TINY[name])
    monkeypatch.setitem(experiment.settings, "quick", tiny)
    said = []
    report = experiments.reproduce(name, seed=1, out=tmp_path, progress=said.append)
    assert said and report["rows"]
    assert max(len(line) for line in experiments.text(report).splitlines()) <= 100
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["seed"] == 1 and len(content["rows"]) == len(report["rows"])
    for file in report["figures"]:
        assert (tmp_path / file).stat().st_size > 5000
    again = experiments.reproduce(name, seed=1)
    assert [row["ours"] for row in again["rows"]] == [row["ours"] for row in report["rows"]]


def test_names_of_rows_fit():
    """At the dimensions of the paper and with every method."""
    every = {(w, m): {
        "error": (0.1, 0.01), "accept": (0.5, 0.01), "largest pooled gap": 0.01,
        "pooled error": [0.01] * 4,
    } for w in (mixture.EACH, mixture.ONE) for m in common.METHODS}  # fmt: skip
    judged = {"log_z": 0.0, "log_z error": 0.01, "accept": 0.5, "accept error": 0.01}
    rows = [row for dim in (16, 256) for row in mixture._rows(dim, judged, every)]
    settings = experiments.find("flow_mcmc/banana").settings["paper"]
    values = {"tv": (0.1, 0.01), "median tv": (0.1, 0.01), "tail": (0.02, 0.001)}
    found = {(share, m): values for share in settings.stages for m in settings.methods}
    rows += banana._rows(512, settings, found, 0.03)
    names = [row.quantity for row in rows]
    assert len(set(names)) == len(names) and max(map(len, names)) <= 34


# ------------------------------------------------------------------------------------- in full
@pytest.mark.slow
def test_four_modes_in_16_dimensions():
    """Check 9 of the specification: 2000 training steps of batch 2048, 700 steps of 32 chains."""
    quick = experiments.find("flow_mcmc/mixture").settings["quick"]
    methods = (common.IMH_, common.I_SIR, common.NEUTRA, common.MALA_, common.IS)
    settings = dataclasses.replace(
        quick, dims=(16,), methods=methods, stages=(), stage_methods=(), plane_steps=200
    )
    outcome = mixture.run(settings, seed=1, device=None, progress=lambda line: None)
    found = outcome.data["d = 16"]
    imh, isir, neutra, mala = (found[f"one mode, {m}"] for m in methods[:4])
    assert found["each mode, IMH"]["accept"][0] >= 0.5
    assert abs(found["flow"]["log_z"]) < 0.05
    assert max(imh["largest pooled gap"], isir["largest pooled gap"]) < 0.03
    assert neutra["error"][0] > 3 * imh["error"][0]
    assert mala["error"][0] > 0.7
    assert all(row.ok for row in outcome.rows), [r.quantity for r in outcome.rows if not r.ok]


@pytest.mark.slow
def test_bananas_in_16_dimensions():
    quick = experiments.find("flow_mcmc/banana").settings["quick"]
    methods = (common.I_SIR, common.NEUTRA, common.MALA_, common.IS, banana.FLOW)
    settings = dataclasses.replace(quick, dims=(16,), methods=methods, stages=(0.0, 0.1, 1.0))
    outcome = banana.run(settings, seed=1, device=None, progress=lambda line: None)
    assert all(row.ok for row in outcome.rows), [r.quantity for r in outcome.rows if not r.ok]
