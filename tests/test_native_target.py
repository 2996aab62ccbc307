"""The example of a user's own C++ target: it builds, and its native chains equal its torch text."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pysamp
from pysamp import backend
from pysamp.check import check_target
from pysamp.mcmc import fused
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA, ULA
from pysamp.mcmc.metropolis import Metropolis
from pysamp.target import HasLocal, HasNative, Tempered, Tilted

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "native_target"
pytestmark = pytest.mark.slow  # the compiler takes most of a minute


@pytest.fixture(scope="module")
def fput(tmp_path_factory):
    """The Python module of the example, on top of an extension built in a folder of its own."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: the example cannot be built")
    build = tmp_path_factory.mktemp("native_target")
    package = str(Path(pysamp.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    python = f"-DPython_EXECUTABLE={sys.executable}"
    for command in (
        ["cmake", "-S", str(EXAMPLE), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", python],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    path = [str(build), str(EXAMPLE)]
    sys.path[:0] = path
    try:
        yield importlib.import_module("fput")
    finally:
        for entry in path:
            sys.path.remove(entry)


@pytest.fixture
def start():
    def make(n: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(4)
        return 0.3 * torch.randn(19, n, generator=generator, dtype=torch.float64).to(dtype)

    return make


def test_it_keeps_the_contract(fput):
    target = fput.Fput(n_sites=9, a=0.3, b=0.7, beta=1.5)
    assert isinstance(target, HasNative)
    assert isinstance(target, HasLocal)
    check_target(target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kernel",
    [MALA(0.05), ULA(0.02), HMC(0.1, n_leapfrog=4), Metropolis(0.1, moves="all"),
     Metropolis(0.8, moves="site")],
    ids=["mala", "ula", "hmc", "metropolis", "sites"],
)  # fmt: skip
def test_native_chains_equal_torch_chains(fput, start, kernel, dtype):
    """19 chains are no multiple of a SIMD width; 37 masses are no multiple of 32."""
    base, x = fput.Fput(n_sites=37, a=0.3, b=0.7, beta=1.5), start(37, dtype)
    for target in (base, Tilted(Tempered(base, 0.5), x[0], 0.8)):
        plan = fused.plan(target, x)
        assert plan is not None
        assert plan.module is base.native.module
        state = kernel.init(target, x, seed=7, first_chain=3)
        native, info = kernel.step(target, state, 25)
        with backend("torch"):
            reference, expected = kernel.step(target, state, 25)
        assert not torch.equal(native.x, x)
        assert torch.equal(native.x, reference.x)
        assert torch.equal(native.log_prob, reference.log_prob)
        assert torch.equal(info.accept, expected.accept)
        if not isinstance(kernel, ULA):
            assert 0.05 < info.accept.mean() < 0.999


def test_harmonic_springs_have_the_covariance_of_a_bridge(fput, start):
    """Without anharmonic terms x is Gaussian with precision β · tridiag(−1, 2, −1)."""
    n, beta, n_chains = 5, 2.0, 4096
    target = fput.Fput(n_sites=n, a=0.0, b=0.0, beta=beta)
    kernel = Metropolis(1.2, moves="site")
    x = torch.zeros(n_chains, n, dtype=torch.float64)
    state, _ = kernel.step(target, kernel.init(target, x, seed=11), 400)
    i = torch.arange(1, n + 1, dtype=torch.float64)
    exact = (torch.minimum(i[:, None], i) - i[:, None] * i / (n + 1)) / beta
    moments = state.x[:, :, None] * state.x[:, None, :]
    error = moments.std(0) / n_chains**0.5
    assert ((moments.mean(0) - exact).abs() < 5 * error).all()


def test_wrong_parameters_are_refused_by_name(fput, start):
    target, x = fput.Fput(n_sites=6), start(7, torch.float64)
    kernel = MALA(0.1)
    state = kernel.init(fput.Fput(n_sites=7), x, seed=0)
    with pytest.raises(ValueError, match="layout"):
        kernel.step(target, state)
