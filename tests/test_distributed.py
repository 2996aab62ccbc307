"""Any number of processes gives the same draws; rows come back in global order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pysamp import chains, plan
from pysamp.distributed import (
    World,
    gather_bytes,
    gather_chains,
    show_progress,
    split,
    world,
)
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.samplers import AIS, SLIPS, SMC, GaussianVI, Importance
from pysamp.samples import Samples
from pysamp.sampling import resume, sample
from pysamp.target import Tempered
from pysamp.targets.gaussian import Gaussian
from pysamp.targets.mixture import GaussianMixture
from pysamp.targets.phi4 import Phi4

SIZES = {"n_chains": 6, "n_draws": 30, "warmup": 20, "seed": 1, "progress": False}


SAMPLERS = {
    "slips": SLIPS(n_times=8, n_steps=4, n_init=4, burn_in=8),
    "ais": AIS(n_levels=6, n_steps=3),
    "smc": SMC(n_levels=6, n_steps=3),
    "importance": Importance(Gaussian(torch.zeros(2), 2.0)),
    "vi": GaussianVI(n_steps=5, batch=8),
}


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return GaussianMixture(means, torch.tensor([0.5, 0.3]), torch.tensor([0.25, 0.75]))


# ------------------------------------------------------------------------- run as a script
def on_ranks(size: int, work: Callable[[], object]) -> list[int]:
    """Exit codes of `work` in `size` forks of this process, which has not yet used torch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            me = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
            os.environ.update({key: str(value) for key, value in {**address, **me}.items()})
            try:
                torch.set_num_threads(1)
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main(root: Path) -> None:
    def run(size: int, ladder: bool = False) -> Callable[[], object]:
        def work() -> None:
            start = {"x0": torch.linspace(-1, 1, 12).reshape(6, 2)} if ladder else {}
            kernel = ParallelTempering(MALA(), n_rungs=3) if ladder else MALA()
            s = sample(mixture(), kernel, **SIZES, **start)
            streamed = sample(mixture(), kernel, **SIZES, **start, out=root / f"run{size}{ladder}")
            assert torch.equal(streamed.x, s.x)
            assert torch.equal(streamed.log_prob, s.log_prob)
            s.save(root / f"draws{size}{ladder}.{os.environ['RANK']}")

        return work

    def per_chain() -> None:
        """A wrapper and a step size with a value for each chain are cut as the chains are."""
        target = Tempered(mixture(), torch.linspace(0.1, 1, 6))
        kernel = MALA(step_size=torch.linspace(0.05, 0.3, 6))
        s = sample(target, kernel, **SIZES)
        streamed = sample(target, kernel, **SIZES, out=root / f"per_chain{world().size}")
        assert torch.equal(streamed.x, s.x)
        assert torch.equal(s.info["scale"], torch.linspace(0.05, 0.3, 6))
        s.save(root / f"per_chain{world().size}.{world().rank}")

    def observed() -> None:
        """Observables instead of x, as means over windows."""
        target, how = Phi4((3, 4), 0.2, 0.5), {"thin": 4, "keep": "observables", "measure_every": 2}
        s = sample(target, MALA(), **SIZES, **how)
        streamed = sample(target, MALA(), **SIZES, **how, out=root / f"observed{world().size}")
        assert torch.equal(streamed.x, s.x)
        s.save(root / f"observed{world().size}.{world().rank}")

    def independent() -> None:
        """Samplers that make all draws in one go; those whose draws are independent share them out."""
        for name, sampler in SAMPLERS.items():
            s = sample(mixture(), sampler, n_chains=11, seed=2, progress=False)
            s.save(root / f"{name}{world().size}.{world().rank}")

    def rows() -> None:
        here = world()
        for counts in ([2, 0, 3], [0, 0, 1]):
            first = sum(counts[: here.rank])
            mine = torch.arange(first, first + counts[here.rank])[:, None] * torch.ones(1, 2)
            whole = torch.arange(sum(counts))[:, None] * torch.ones(1, 2)
            assert torch.equal(gather_chains(mine, here, sum(counts)), whole)
        assert gather_bytes(b"x" * here.rank, here) == [b"", b"x", b"xx"]

    def killed() -> None:
        """Rank 1 dies as by kill -9 in the middle of its draws, after some checkpoints."""
        plan.BLOCK_STEPS, chains.CHECKPOINT_SECONDS = 4, 0.0
        step, calls = MALA.step, [0]

        def dies(*args, **kwargs):
            calls[0] += kwargs.get("thin") is not None
            if calls[0] == 4 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **kwargs)

        MALA.step = dies
        sample(mixture(), MALA(), **SIZES, out=root / "killed")

    def go_on() -> None:
        resume(root / "killed", progress=False).save(root / f"resumed.{os.environ['RANK']}")

    def too_many() -> None:
        sample(mixture(), MALA(), **{**SIZES, "n_chains": 2})

    codes = {f"run{size}": on_ranks(size, run(size)) for size in (1, 2, 4)}
    codes["ladder"] = on_ranks(1, run(1, True)) + on_ranks(4, run(4, True))
    codes["per_chain"] = on_ranks(1, per_chain) + on_ranks(4, per_chain)
    codes["observed"] = on_ranks(1, observed) + on_ranks(4, observed)
    codes["independent"] = on_ranks(1, independent) + on_ranks(3, independent)
    codes["rows"] = on_ranks(3, rows)
    codes["killed"] = on_ranks(2, killed)
    codes["go_on"] = on_ranks(1, go_on)
    codes["too_many"] = on_ranks(3, too_many)
    (root / "codes.json").write_text(json.dumps(codes))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One script, imported once, that forks all groups of processes."""
    root = tmp_path_factory.mktemp("ranks")
    run = subprocess.run(
        [sys.executable, __file__, str(root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (root / "stderr").write_text(run.stderr)
    return root


def code_of(root: Path, name: str) -> list[int]:
    return json.loads((root / "codes.json").read_text())[name]


@pytest.mark.parametrize("ladder", [False, True])
def test_draws_do_not_depend_on_the_number_of_processes(root, ladder):
    sizes = (1, 4) if ladder else (1, 2, 4)  # 4 processes share 6 chains as 2, 2, 1, 1
    for size in sizes:
        assert set(code_of(root, "ladder" if ladder else f"run{size}")) == {0}, (
            root / "stderr"
        ).read_text()
    one = Samples.load(root / f"draws1{ladder}.0")
    assert one.x.shape == (6, 30, 2)
    assert one.x.std() > 0.3
    for size in sizes:
        for rank in range(size):
            other = Samples.load(root / f"draws{size}{ladder}.{rank}")
            assert torch.equal(other.x, one.x)
            assert torch.equal(other.log_prob, one.log_prob)
            assert torch.equal(other.info["accept"], one.info["accept"])
            assert other.info["evaluations"] == one.info["evaluations"]
        folder = resume(
            root / f"run{size}{ladder}"
        )  # a finished run of any size reads in one process
        assert torch.equal(folder.x, one.x)


def test_values_for_each_chain_are_shared_out_with_the_chains(root):
    assert set(code_of(root, "per_chain")) == {0}, (root / "stderr").read_text()
    one = Samples.load(root / "per_chain1.0")
    assert one.x[0].std() > 1.5 * one.x[5].std() > 0.1  # β = 0.1 and 1
    assert torch.equal(Samples.load(root / "per_chain4.3").x, one.x)
    assert torch.equal(resume(root / "per_chain4").x, one.x)


def test_observables_do_not_depend_on_the_number_of_processes(root):
    assert set(code_of(root, "observed")) == {0}, (root / "stderr").read_text()
    one = Samples.load(root / "observed1.0")
    assert one.names is not None and one.x.shape == (6, 30, len(one.names))
    assert float(one.observable("energy_within").mean()) > 1e-6
    for rank in range(4):
        other = Samples.load(root / f"observed4.{rank}")
        assert other.names == one.names
        assert torch.equal(other.x, one.x) and torch.equal(other.log_prob, one.log_prob)
    assert torch.equal(resume(root / "observed4").x, one.x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_of_samplers_do_not_depend_on_the_number_of_processes(root, name):
    assert set(code_of(root, "independent")) == {0}, (root / "stderr").read_text()
    one = Samples.load(root / f"{name}1.0")
    assert one.x.shape == (11, 1, 2) and one.x.std() > 0.3
    for rank in range(3):
        other = Samples.load(root / f"{name}3.{rank}")
        assert torch.equal(other.x, one.x) and torch.equal(other.log_prob, one.log_prob)
        if one.log_weight is not None:
            assert torch.equal(other.log_weight, one.log_weight)
        for key in ("log_z", "log_z_error", "ess", "pareto_k", "elbo"):
            if key in one.info:
                assert other.info[key] == pytest.approx(one.info[key], rel=1e-12, nan_ok=True)
        for key in ("accept", "nonfinite"):
            if key in one.info:
                assert torch.equal(torch.as_tensor(other.info[key]), torch.as_tensor(one.info[key]))


def test_rows_are_gathered_in_global_order_with_unequal_and_empty_shares(root):
    assert code_of(root, "rows") == [0, 0, 0], (root / "stderr").read_text()


def test_run_of_two_processes_killed_in_one_is_resumed_by_one(root):
    assert code_of(root, "killed")[1] == -signal.SIGKILL
    assert code_of(root, "killed")[0] == 1  # its partner is gone, and it says so instead of waiting
    assert code_of(root, "go_on") == [0], (root / "stderr").read_text()
    assert torch.equal(Samples.load(root / "resumed.0").x, Samples.load(root / "draws1False.0").x)


def test_more_processes_than_chains_is_an_error(root):
    assert code_of(root, "too_many") == [1, 1, 1]
    assert "n_chains=2 is fewer than the 3 processes" in (root / "stderr").read_text()


# ------------------------------------------------------------------------- in one process
@pytest.mark.parametrize(("n", "size"), [(0, 1), (1, 1), (6, 4), (7, 3), (2, 5), (4096, 8)])
def test_split_covers_everything_once(n, size):
    ranges = [split(n, World(rank, size)) for rank in range(size)]
    assert [i for first, count in ranges for i in range(first, first + count)] == list(range(n))
    counts = [count for _, count in ranges]
    assert max(counts) - min(counts) <= 1


def test_split_refuses_a_negative_number():
    with pytest.raises(ValueError, match="got -1"):
        split(-1, World())


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    here = world()
    assert here == World(0, 1, 0)
    x = torch.arange(3.0)
    assert torch.equal(gather_chains(x, here), x)
    assert gather_bytes(b"a", here) == [b"a"]
    with pytest.raises(ValueError, match="got 4"):
        gather_chains(x, here, 4)


def test_half_set_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK must be set by torchrun"):
        world()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="got 'two'"):
        world()


def test_progress_prints_lines_where_there_is_no_terminal(capsys, monkeypatch):
    from pysamp import distributed

    monkeypatch.setattr(distributed, "LINE_SECONDS", 0.0)
    with show_progress(4, "draws", World()) as bar:
        bar.update(1)
        bar.update(3)
    assert capsys.readouterr().err == "draws: 1 of 4 (25 %)\ndraws: 4 of 4 (100 %)\n"
    for quiet in (World(rank=1, size=2), replace(World(), rank=3, size=4)):
        with show_progress(4, "draws", quiet) as bar:
            bar.update(4)
    with show_progress(4, "draws", World(), show=False) as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
