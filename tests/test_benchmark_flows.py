"""The flows in the benchmarks: opponents evaluate the same network, and a wrong gradient is not timed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from pysamp import quickbench, timing
from pysamp.timing import DisagreementError, Variant

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks/ is not part of the package

from benchmarks import bench, flows, goals, machine, peers, run

ON = bench.On(torch.device("cpu"), threads=1, quick=True)
CASES = {
    "forward": lambda: flows.inference(ON, "small", 6, 2, 200, False, 16),
    "inverse": lambda: flows.inference(ON, "small", 6, 2, 200, True, 16, 3, "separate"),
    "training": lambda: flows.training(ON, "small", 6, 2, 16, 200),
    "training, joint": lambda: flows.training(ON, "small", 6, 2, 16, 200, 4, "joint"),
}


@pytest.fixture(autouse=True)
def one_thread():
    with torch.random.fork_rng(devices=[]), timing.using_threads(1):
        yield


@pytest.mark.parametrize("name", CASES)
def test_variants_agree(name):
    made = CASES[name]()
    present = {v.name for v in made.case.variants}
    assert {"torch", "torch eager", "torch.mm"} <= present
    assert ("native" in present) == quickbench.native_on(ON.device)
    assert {"jax", "zuko", "normflows"} & present == {
        peer for peer in ("jax", "zuko", "normflows") if peers.available(peer)
    }
    same = {v.name for v in made.case.variants[1:] if v.agree == "close"}
    assert same == present & {"native", "torch eager", "jax"}
    timing.check(made.case)


@pytest.mark.parametrize("name", CASES)
def test_the_work_does_something(name):
    """Images are not the points; training changes ln q, and every call begins at the same weights."""
    case = CASES[name]().case
    for v in case.variants:
        if v.name == "torch.mm":
            continue
        first, third, again = (v.run(n) for n in (1, 3, 3))
        if "training" in name:
            first, third, again = (torch.as_tensor(t) for t in (first, third, again))
            least = 1e-2 if v.agree == "close" or v.name == "torch" else 1e-6
            assert float((third - first).abs().max()) > least * float(first.abs().max())
            torch.testing.assert_close(third, again, rtol=1e-6, atol=1e-6)
        else:
            x, log_det = (torch.as_tensor(t) for t in first)
            assert x.shape == (200, 6) and log_det.shape == (200,)
            assert float(x.std(0).min()) > 0.1 and float(log_det.abs().max()) > 1e-3


def test_a_wrong_gradient_disagrees():
    case = CASES["training"]().case
    flow = flows.flow_of(ON, 6, 2, 16, 3, "separate")

    def spoilt(n: int) -> torch.Tensor:
        weights = flow.weights

        def log_prob(x: torch.Tensor) -> torch.Tensor:
            return flow.log_prob(x) + 0.2 * (weights - weights.detach()).sum()

        x = flows.points(ON, 6, 200)
        return peers.descend(log_prob, x, [weights], flows.RATE, n)

    wrong = Variant("wrong", spoilt, 1, "close")
    with pytest.raises(DisagreementError, match="small: wrong against torch"):
        timing.check(dataclasses.replace(case, variants=(case.variants[0], wrong)))


def test_goals_of_flows():
    def row(variant: str, rate: float, **more) -> dict:
        return {"case": "realnvp_64_forward", "variant": variant, "device": "cpu", "threads": 1,
                "rate": rate, "fraction": 0.8, "ceiling": "multiply-adds", "goals": []} | more  # fmt: skip

    rows = [row("native", 0.3), row("jax", 0.25), row("torch eager", 0.1), row("torch", 0.16)]
    goals.judge(rows, isa="x86-64-v4")
    judged = [(goal["against"], goal["must"], goal["met"]) for goal in rows[0]["goals"]]
    assert judged == [
        ("jax", 1.5, False), ("torch", 2, False), ("zuko", 4, None), ("multiply-adds", 0.65, True),
    ]  # fmt: skip
    assert rows[0]["goals"][-1]["reached"] == 0.8
    text = run.table(rows)
    assert "80%" in text and "65%" in text
    (other,) = [row("native", 0.3, ceiling="copy")]
    goals.judge([other], isa="x86-64-v4")
    assert other["goals"][-1]["met"] is None


def test_counts():
    made = flows.realnvp_64_forward(ON)
    assert made.flops == 8 * 2 * (32 * 128 + 128 * 128 + 128 * 64) == 458_752
    assert made.multiply_adds == made.flops / 2
    train = flows.training(ON, "train", 16, 5, 64, 32)
    assert train.flops == 3 * 2 * 10 * 2 * (8 * 64 + 64 * 8)
    rate = machine.multiply_adds()
    assert rate is None or 1 < rate < 500  # a nanosecond
