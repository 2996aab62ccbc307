"""The README does what it says: its Python blocks run, its commands are those that CI reads from it."""

import functools
import pathlib
import re

import pytest
import torch

import pysamp as ps

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def text():
    if not README.exists():
        pytest.skip("needs the source tree")
    return README.read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


class Quiet:
    """pysamp, whose `sample` shows no progress."""

    sample = staticmethod(functools.partial(ps.sample, progress=False))

    def __getattr__(self, name):
        return getattr(ps, name)


def run(block):
    """A block that has imported torch and pysamp, without its progress lines."""
    names = {"ps": Quiet(), "torch": torch}
    exec(block.replace("import pysamp as ps\n", ""), names)
    return names


def test_the_first_python_block_runs(text, tmp_path, monkeypatch):
    """As printed, with fewer draws."""
    block = blocks(text)[0]
    small = block.replace("n_draws=10_000", "n_draws=60").replace("warmup=500", "warmup=60")
    small = small.replace("n_rungs=32", "n_rungs=4")
    assert small.count("60") == 2 and "n_rungs=4" in small
    monkeypatch.chdir(tmp_path)
    names = run(small)
    assert names["samples"].x.shape == (4, 60, 100)
    assert (tmp_path / "phi4.png").stat().st_size > 10_000
    assert abs(float(names["weights"].sum()) - 1) < 1e-6


def test_the_lattice_block_runs(text):
    block = (
        blocks(text)[1].replace("(64, 64)", "(6, 6)").replace("1000", "50").replace("=500", "=20")
    )
    names = run(block)
    assert names["run"].names[0] == "energy"
    assert names["run"].x.shape[:2] == (64, 50)
    assert "helicity" in str(names["run"].summary())


def test_the_block_of_samplers_runs(text):
    """Both give summaries; SMC with the true moments also the right weights."""
    block = blocks(text)[2].replace("n_times=128", "n_times=8, n_steps=4, burn_in=8")
    block = block.replace("print(run.summary())", "runs = [*globals().get('runs', []), run]")
    smc, slips = run(block)["runs"]
    weights, _ = ps.metrics.mode_weights(smc, smc.target)
    assert abs(float(weights[0]) - 2 / 3) < 0.15
    assert {"SMC", "SLIPS"} == {str(r.summary()).split()[0] for r in (smc, slips)}


def test_the_block_of_flows_runs(text):
    """As printed, with less training and fewer draws."""
    block = blocks(text)[3].replace("n_steps=400", "n_steps=2, n_walkers=64, batch=64, burn_in=40")
    block = block.replace("10_000", "100").replace("x0=plus", "n_draws=20, warmup=20, x0=plus")
    block = block.replace("print(run.summary())", "runs = [*globals().get('runs', []), run]")
    names = run(block)
    assert [r.info["sampler"] for r in names["runs"]] == ["IMH", "Ex2MCMC", "Neutra"]
    assert all(r.x.shape == (64, 20, 64) for r in names["runs"])


def test_the_commands(text):
    (block,) = re.findall(r"```console\n(.*?)```", text, flags=re.S)
    assert block.splitlines() == [
        "pip install -c constraints.txt . && pysamp demo",
        'pip install -c constraints.txt ".[test]" && pytest',
    ]


def test_the_table_names_what_exists(text):
    files = re.findall(r"`([a-z_/]+\.py)`", text)
    assert len(files) >= 5
    package = pathlib.Path(ps.__file__).parent
    for name in files:
        assert (package / name).exists(), name
