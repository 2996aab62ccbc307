"""Every op of the table: value, gradient, registration, compilation, and what it refuses."""

import pytest
import torch
from op_samples import LEVEL, SAMPLES, noise
from torch.library import opcheck

import pysamp
from pysamp import _native, couplings, ops

NAMES = sorted(ops.TABLE)
DIFFERENTIABLE = [
    "affine_couplings", "affine_couplings_vjp", "funnel", "logistic", "mixture", "phi4", "rings",
    "soft", "spins", "sum32",
]  # fmt: skip


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def first_sample(name, device="cpu", dtype=torch.float64):
    return next(iter(SAMPLES[name](torch.device(device), dtype)))[1]


def test_every_op_has_samples():
    assert set(SAMPLES) == set(LEVEL) == set(ops.TABLE)


@pytest.mark.parametrize("name", NAMES)
def test_value_equals_the_reference(name, device, dtype, native):
    compared = 0
    for label, arguments in SAMPLES[name](device, dtype):
        found, expected = (
            as_tuple(ops.TABLE[name](*arguments)),
            as_tuple(ops.TABLE[name].reference(*arguments)),
        )
        for f, e in zip(found, expected, strict=True):
            assert f.shape == e.shape and f.dtype == e.dtype and f.device == e.device, label
            if LEVEL[name] == "equal":
                assert torch.equal(f, e), f"{name}, {label}: {(f != e).sum()} of {f.numel()} differ"
            else:
                torch.testing.assert_close(f, e)
            compared += f.numel()
    assert compared > 0


@pytest.mark.parametrize("name", NAMES)
def test_torch_backend_calls_the_reference(name):
    arguments = first_sample(name)
    with pysamp.backend("torch"):
        found = as_tuple(ops.TABLE[name](*arguments))
    for f, e in zip(found, as_tuple(ops.TABLE[name].reference(*arguments)), strict=True):
        assert torch.equal(f, e)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name, device):
    """First and second derivatives, in x and in the parameters, against finite differences."""
    arguments = list(first_sample(name, device))
    arguments[0] = arguments[0][:2].clone().requires_grad_(True)
    if name == "phi4":
        arguments[0] = arguments[0].detach()[:, :6].clone().requires_grad_(True)
        arguments[3] = [6, 2, 0, 1]
    if name in ("soft", "spins"):  # a ring of three sites of two components
        arguments[0] = arguments[0].detach()[:, :6].clone().requires_grad_(True)
        arguments[2:] = arguments[2][:0], [3, 2, 1, 2]
    if name != "sum32":
        arguments[1] = arguments[1].clone().requires_grad_(True)
    if name == "affine_couplings_vjp":
        arguments[6:8] = (a[:2].clone().requires_grad_(True) for a in arguments[6:8])
    wanted = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]

    def call(*values):
        it = iter(values)
        given = [
            next(it) if isinstance(a, torch.Tensor) and a.requires_grad else a for a in arguments
        ]
        if name == "affine_couplings_vjp":  # the kernel reads the image in place of x
            given[5] = couplings.affine_couplings(*given[:5])[0].detach()
        return ops.TABLE[name](*given)

    assert torch.autograd.gradcheck(call, wanted)
    if name != "affine_couplings_vjp":  # a derivative already
        assert torch.autograd.gradgradcheck(call, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, dtype):
    arguments = list(first_sample(name, dtype=dtype))
    if name in DIFFERENTIABLE:
        arguments[0] = arguments[0].clone().requires_grad_(True)
    opcheck(getattr(torch.ops.pysamp, name).default, tuple(arguments))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_compiles_without_a_graph_break(name, backend):
    """torch.compile(fullgraph=True), with a backward pass where there is one."""
    if (name, backend) == ("affine_couplings_vjp", "torch"):
        pytest.skip("a gradient of its own: in pure torch autograd has it, and nothing calls this")
    torch._dynamo.reset()
    arguments = list(first_sample(name))
    if name in DIFFERENTIABLE:
        arguments[0] = arguments[0].clone().requires_grad_(True)

    def call(*values):
        out = as_tuple(ops.TABLE[name](*values))[0]
        return out * 2 if name == "bits" else out.square()

    with pysamp.backend(backend):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        found = compiled(*arguments)
        expected = call(*arguments)
        torch.testing.assert_close(found, expected)
        if name in DIFFERENTIABLE:
            (f,) = torch.autograd.grad(found.sum(), arguments[0])
            (e,) = torch.autograd.grad(expected.sum(), arguments[0])
            torch.testing.assert_close(f, e)


def test_score_is_the_gradient_of_log_prob():
    x, params, table, layout = first_sample("phi4")
    x = x.clone().requires_grad_(True)
    log_prob, score = ops.phi4(x, params, table, layout)
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(score.detach(), gradient)


# --- what an op refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_wrong_dtype_lists_the_accepted_ones(name, native, device):
    if device.type != "cpu":
        pytest.skip("one device is enough for argument checks")
    arguments = list(first_sample(name))
    arguments[0] = arguments[0].to(torch.float16)
    with pytest.raises(
        TypeError, match=rf"pysamp.{name}: no kernel for \(Tensor\[float16"
    ) as caught:
        ops.TABLE[name](*arguments)
    accepted = "Tensor[int32, 2d]" if name == "bits" else "Tensor[float64, 2d]"
    assert accepted in str(caught.value)
    assert len(str(caught.value)) < 4000  # no tensor is printed


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_wrong_rank(name, native, device):
    arguments = list(first_sample(name, device))
    arguments[0] = arguments[0][0]
    with pytest.raises(ValueError, match=rf"pysamp.{name}: expected a tensor of rank 2, got shape"):
        ops.TABLE[name](*arguments)


def test_sizes_that_disagree(native, device):
    x, params, table, layout = first_sample("phi4", device)
    with pytest.raises(
        ValueError, match="phi4: x: expected events of 99 sites of 1 components, got 100"
    ):
        ops.phi4(x, params, table, [99, 2, 0, 1])
    with pytest.raises(ValueError, match=r"phi4: params: expected \(J, v1, v2, v4, c\), got 3"):
        ops.phi4(x, params[:3], table, layout)
    with pytest.raises(ValueError, match="phi4: table: wrong length"):
        ops.phi4(x, params, table, [100, 4, 1, 1])
    x, params, table, layout = first_sample("mixture", device)
    with pytest.raises(ValueError, match="mixture: params: expected"):
        ops.mixture(x, params[:-1], table, layout)


def test_sizes_of_couplings_that_disagree(native, device):
    x, params, scale, layout, inverse = first_sample("affine_couplings", device)

    def refuses(words, *changed):
        with pytest.raises(ValueError, match=f"affine_couplings: {words}"):
            ops.affine_couplings(*changed)

    refuses("expected 150 weights, got 149", x, params[:-1], scale, layout, inverse)
    refuses("expected events of 3 numbers, got 2", x[:, :2], params, scale, layout, inverse)
    refuses("layout must hold 6 numbers", x, params, scale, layout[:5], inverse)
    for position, bad in ((0, 1), (1, 0), (2, 0), (3, 0), (4, 0), (4, 3)):
        wrong = [bad if k == position else v for k, v in enumerate(layout)]
        refuses(
            "layout must have dim > 1, couplings, .* 1 or 2 networks",
            x,
            params,
            scale,
            wrong,
            inverse,
        )
    refuses("expected a tensor of rank 1, got shape", x, params[None], scale, layout, inverse)
    if device.type == "cpu":
        given = list(first_sample("affine_couplings_vjp", device))
        for position in (5, 6, 7):  # the image, its gradient, that of ln det
            wrong = [a[:-1] if k == position else a for k, a in enumerate(given)]
            with pytest.raises(ValueError, match="images and ln det must have the sizes of x"):
                ops.affine_couplings_vjp(*wrong)


def test_derivatives_of_one_output_of_couplings(device):
    """The gradient of the image alone and of ln det alone; of points alone and of weights alone."""
    x, params, *others = first_sample("affine_couplings", device)
    for which in (0, 1):
        for leaves in ((True, True), (True, False), (False, True)):
            given = [
                t.clone().requires_grad_(wanted)
                for t, wanted in zip((x, params), leaves, strict=True)
            ]
            out = (
                call(*given, *others)[which]
                for call in (ops.affine_couplings, couplings.affine_couplings)
            )
            wanted = [t for t in given if t.requires_grad]
            found, expected = (torch.autograd.grad(o.sin().sum(), wanted) for o in out)
            torch.testing.assert_close(found, expected)
            assert all(bool(g.any()) for g in expected)


@pytest.mark.gpu
def test_wrong_device():
    x, params, table, layout = first_sample("phi4", "cuda")
    with pytest.raises(ValueError, match="expected a CUDA tensor"):
        ops.phi4(x, params.cpu(), table, layout)


def test_meta_tensors_are_refused_by_the_caster():
    module = _native.module_for(torch.device("cpu"))
    if module is None:
        pytest.skip("no native module for cpu")
    with pytest.raises((ValueError, BufferError, RuntimeError, TypeError)):
        module.sum32(torch.empty(2, 3, device="meta"), torch.empty(2))


def test_views_without_the_exchange_table(native, device):
    """A torch without __dlpack_c_exchange_api__ goes through data_ptr: same checks, same values."""
    x = noise(5, 77, device, torch.float32)
    expected = ops.sum32(x)
    try:
        native._use_fallback(True)
        assert torch.equal(ops.sum32(x), expected)
        with pytest.raises(TypeError, match=r"Tensor\[float32, 2d\]"):
            native.sum32(x.half(), expected)
        with pytest.raises(ValueError, match="contiguous"):
            native.sum32(x.t(), x.new_empty(77))
    finally:
        native._use_fallback(False)
    with pytest.raises(ValueError, match="contiguous"):
        native.sum32(x.t(), x.new_empty(77))


def test_selftest_agrees():
    rows = ops.selftest()
    assert {r[0] for r in rows} == set(ops.TABLE) or not rows
    assert all(agrees for *_, agrees, _ in rows), rows
