"""MALA from points that were not evaluated: one call is what an evaluation and n steps are."""

from __future__ import annotations

import math

import pytest
import torch

import pysamp
from pysamp import rng
from pysamp.mcmc.langevin import MALA, Multiplicative
from pysamp.target import Counted, Tempered, Tilted
from pysamp.targets import EightGaussians, Phi4, Phi4Chain
from pysamp.targets.gaussian import Bridged, Gaussian

ROWS = 37


def normal(*event: int, dtype: torch.dtype, seed: int = 4) -> torch.Tensor:
    return rng.normal((ROWS, *event), seed=seed, dtype=dtype)


def full(dim: int) -> torch.Tensor:
    a = rng.normal((dim, dim), seed=9, dtype=torch.float64)
    return a @ a.T / dim + torch.eye(dim, dtype=torch.float64)


def cases(dtype: torch.dtype) -> dict[str, tuple[object, bool]]:
    """Targets, and whether native and torch agree to the last bit."""
    chain, field, mixture = Phi4Chain(13, h=0.1), Phi4((5, 4), 0.25, 0.1), EightGaussians()
    lam = torch.linspace(0, 1, ROWS, dtype=dtype)
    return {
        "chain": (chain, True),
        "tilted": (Tilted(chain, normal(13, dtype=dtype), 3.0), True),
        "tilted and tempered": (Tilted(Tempered(field, 0.5), normal(5, 4, dtype=dtype), lam), True),
        "to one variance": (Bridged(chain, Gaussian(torch.ones(13), 2.0), lam), True),
        "to a covariance": (Bridged(chain, Gaussian(torch.ones(13), full(13)), lam), False),
        "mixture": (Tilted(mixture, normal(2, dtype=dtype), 0.7), False),
        "mixture, to a covariance": (Bridged(mixture, Gaussian(torch.ones(2), full(2)), 0.4), False),
    }  # fmt: skip


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


KERNELS = {"adapted": MALA(adapt=Multiplicative()), "fixed": MALA()}


def compare(name: str, kernel: str, dtype: torch.dtype) -> None:
    target, equal = cases(dtype)[name]
    x = normal(*target.event_shape, dtype=dtype, seed=5)
    h = 0.01 * (1 + rng.uniform((ROWS, 1), seed=6, dtype=dtype)[:, 0])
    call = {"n": 12, "seed": 3, "step": 7, "first_chain": 5, "n_mean": 5}
    found = KERNELS[kernel].advance(target, x, h, **call)
    with pysamp.backend("torch"):
        expected = KERNELS[kernel].advance(target, x, h, **call)
    assert not torch.equal(found.x, x)
    assert kernel == "fixed" or not torch.equal(found.step_size, h)
    for part in ("x", "mean", "step_size", "nonfinite", "log_prob"):
        f, e = getattr(found, part), getattr(expected, part)
        if equal:
            assert torch.equal(f, e), part
        else:
            tolerance = 2e-4 if dtype == torch.float32 else 1e-9
            torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.accept, expected.accept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", cases(torch.float64))
@pytest.mark.parametrize("kernel", KERNELS)
def test_native_calls_equal_the_torch_text(name, kernel, dtype):
    compare(name, kernel, dtype)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_it_is_an_evaluation_and_steps(backend, dtype):
    target = cases(dtype)["tilted"][0]
    x = normal(13, dtype=dtype, seed=5)
    with pysamp.backend(backend):
        kernel = MALA(0.01, Multiplicative())
        found = kernel.advance(target, x, None, 9, seed=3, step=0, n_mean=4)
        state, info = kernel.step(target, kernel.init(target, x, seed=3), 9, thin=1)
    assert torch.equal(found.x, state.x)
    assert torch.equal(found.step_size, state.aux["step_size"])
    mean = info.x[:, -4:].double().mean(1)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-5, atol=1e-6)


def test_calls_can_be_split_in_rows_and_steps(dtype):
    target = Phi4Chain(9)
    x = normal(9, dtype=dtype)
    kernel = MALA(adapt=Multiplicative())
    whole = kernel.advance(target, x, 0.01, 8, seed=3, step=2, first_chain=4)
    first = kernel.advance(target, x[20:], 0.01, 5, seed=3, step=2, first_chain=24)
    second = kernel.advance(target, first.x, first.step_size, 3, seed=3, step=7, first_chain=24)
    # the score is evaluated again between them, and is the same number
    assert torch.equal(second.x, whole.x[20:])
    assert torch.equal(second.step_size, whole.step_size[20:])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_evaluation_at_the_start_is_counted(backend, dtype):
    target = Counted(Phi4Chain(9))
    with pysamp.backend(backend):
        MALA(0.01).advance(
            Tilted(target, torch.zeros(9), 1.0), normal(9, dtype=dtype), None, 6, seed=0
        )
    assert (target.evaluations, target.gradients) == (7 * ROWS, 7 * ROWS)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_chain_without_a_finite_density_stays(backend):
    target = Phi4Chain(9)
    x = normal(9, dtype=torch.float32)
    x[3, 2] = math.nan
    x[5] = 1e20  # φ⁴ overflows
    with pysamp.backend(backend):
        found = MALA(0.01).advance(target, x, None, 6, seed=0)
    finite = torch.isfinite(found.log_prob)
    assert not finite[3] and not finite[5] and finite.sum() == ROWS - 2
    assert found.accept[3] == 0 and found.nonfinite[3] == 6
    assert torch.equal(found.x[5], x[5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"n": 0}, ["n ", "0"]),
        ({"n": 4, "n_mean": 5}, ["n_mean", "5"]),
        ({"n": 4, "n_mean": -1}, ["n_mean", "-1"]),
        ({"n": 4, "step_size": -0.1}, ["step_size", "-0.1"]),
        ({"n": 4, "step_size": torch.ones(3)}, ["step_size", "(3,)"]),
        ({"n": 4, "step_size": None}, ["step_size", "None"]),
    ],
)
def test_bad_input_names_the_argument(call, words):
    call = {"step_size": 0.1, "seed": 0, **call}
    with pytest.raises(ValueError) as error:
        MALA().advance(Phi4Chain(9), normal(9, dtype=torch.float32), **call)
    assert all(word in str(error.value) for word in words)
