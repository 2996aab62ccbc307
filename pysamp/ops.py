"""The op table: schema, native kernel, torch reference and gradient of every native op.

An op is registered with `torch.library`, so autograd, `torch.compile` and `opcheck` see it; its
gradient is the reference's own unless a shorter one is given. In `pysamp.backend("torch")` the
reference is called directly, outside the dispatcher. Adding an op: docs/adding_a_kernel.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pysamp import _native, couplings, energies, reference

_library = torch.library.Library("pysamp", "DEF")


@dataclass(frozen=True)
class Op:
    """One row of the table; calling it runs the backend in use."""

    name: str
    schema: str
    reference: Callable[..., Any]
    kernel: Callable[..., Any]  # (module, *arguments) -> outputs

    def __call__(self, *arguments: Any) -> Any:
        if _native.backend_name() == "torch":
            return self.reference(*arguments)
        return getattr(torch.ops.pysamp, self.name)(*arguments)


TABLE: dict[str, Op] = {}


def native(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    vjp: Callable[..., Any] | None = None,
    differentiable: bool = True,
) -> Callable[[Callable[..., Any]], Op]:
    """Register the decorated function, kernel(module, *arguments) -> outputs, as an op.

    `reference(*arguments)` defines the values, `fake` the shapes. `vjp(tensors, others, outputs, grads,
    needed)`, the arguments in two lists, may return the gradients of the tensors, or None where it does not
    apply.
    """
    name = schema.split("(", 1)[0]

    def register(kernel: Callable[..., Any]) -> Op:
        def implementation(*arguments: Any) -> Any:
            device = next(a.device for a in arguments if isinstance(a, Tensor))
            module = _native.module_for(device)
            if module is None:
                return reference(*arguments)
            try:
                return kernel(module, *arguments)
            except ValueError as error:
                raise ValueError(f"pysamp.{name}: {error}") from None
            except TypeError as error:  # pybind11 lists the overloads, then prints whole tensors
                accepted = str(error).split("\n\nInvoked with")[0]
                got = ", ".join(_describe(a) for a in arguments)
                raise TypeError(f"pysamp.{name}: no kernel for ({got}); {accepted}") from None

        _library.define(schema)
        _library.impl(name, implementation, "CPU")
        _library.impl(name, implementation, "CUDA")
        torch.library.register_fake(f"pysamp::{name}", fake, lib=_library)
        if differentiable:
            torch.library.register_autograd(
                f"pysamp::{name}",
                functools.partial(_backward, reference, vjp),
                setup_context=_setup_context,
                lib=_library,
            )
        TABLE[name] = op = Op(name, schema, reference, kernel)
        return op

    return register


def _describe(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"Tensor[{str(argument.dtype).removeprefix('torch.')}, {argument.ndim}d]"
    return repr(argument)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    outputs = output if isinstance(output, tuple) else (output,)
    ctx.is_tensor = [isinstance(a, Tensor) for a in inputs]
    ctx.others = [a for a in inputs if not isinstance(a, Tensor)]
    ctx.n_inputs = sum(ctx.is_tensor)
    ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)), *outputs)


def _backward(
    reference: Callable[..., Any], vjp: Callable[..., Any] | None, ctx: Any, *grads: Tensor | None
) -> tuple[Tensor | None, ...]:
    if all(g is None for g in grads):
        return tuple(None for _ in ctx.is_tensor)
    saved = ctx.saved_tensors
    tensors, outputs = saved[: ctx.n_inputs], saved[ctx.n_inputs :]
    needed = [n for n, t in zip(ctx.needs_input_grad, ctx.is_tensor, strict=True) if t]
    found = vjp(tensors, ctx.others, outputs, grads, needed) if vjp is not None else None
    if found is None:
        found = _reference_gradient(reference, ctx, tensors, grads, needed)
    it = iter(found)
    return tuple(next(it) if t else None for t in ctx.is_tensor)


def _reference_gradient(
    reference: Callable[..., Any],
    ctx: Any,
    tensors: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    needed: list[bool],
) -> list[Tensor | None]:
    with torch.enable_grad():
        inputs = [t.view_as(t) if n else t.detach() for t, n in zip(tensors, needed, strict=True)]
        values, others = iter(inputs), iter(ctx.others)
        out = reference(*(next(values) if t else next(others) for t in ctx.is_tensor))
        outs = out if isinstance(out, tuple) else (out,)
        pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if g is not None]
        wanted = [t for t, n in zip(inputs, needed, strict=True) if n]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs],
                wanted,
                [g for _, g in pairs],
                create_graph=True,
                allow_unused=True,
            )
        )
    return [next(found) if n else None for n in needed]


# --- Random numbers --------------------------------------------------------------------------------

_RANDOM = (
    "(Tensor like, int n_chains, int n, int seed, int step, int stream, int first_chain, int first)"
    " -> Tensor"
)


def _random(name: str) -> Callable[..., Tensor]:
    def kernel(
        module: ModuleType, like: Tensor, n_chains: int, n: int, seed: int, *address: int
    ) -> Tensor:
        out = like.new_empty((n_chains, n))
        step, stream, first_chain, first = address
        getattr(module, name)(out, seed % (1 << 64), step, stream, first_chain, first)
        return out

    return kernel


def _random_fake(like: Tensor, n_chains: int, n: int, *_: int) -> Tensor:
    return like.new_empty((n_chains, n))


bits = native("bits" + _RANDOM, reference=reference.bits, fake=_random_fake, differentiable=False)(
    _random("bits")
)
uniform = native(
    "uniform" + _RANDOM, reference=reference.uniform, fake=_random_fake, differentiable=False
)(_random("uniform"))
normal = native(
    "normal" + _RANDOM, reference=reference.normal, fake=_random_fake, differentiable=False
)(_random("normal"))
log_uniform = native(
    "log_uniform" + _RANDOM,
    reference=reference.log_uniform,
    fake=_random_fake,
    differentiable=False,
)(_random("log_uniform"))


# --- Sums ------------------------------------------------------------------------------------------


def _sum32_vjp(
    inputs: tuple[Tensor, ...], others: list[Any], outputs: tuple[Tensor, ...], grads: Any,
    needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    return [grads[0][:, None].expand_as(inputs[0])]


@native(
    "sum32(Tensor x) -> Tensor",
    reference=reference.sum32,
    fake=lambda x: x.new_empty(x.shape[0]),
    vjp=_sum32_vjp,
)
def sum32(module: ModuleType, x: Tensor) -> Tensor:
    if x.ndim != 2:
        raise ValueError(f"expected a tensor of rank 2, got shape {tuple(x.shape)}")
    out = x.new_empty(x.shape[0])
    module.sum32(x.contiguous(), out)
    return out


# --- Energies: log p and its gradient in one pass --------------------------------------------------

_ENERGY = "(Tensor x, Tensor params, Tensor table, int[] layout) -> (Tensor, Tensor)"


def energy(
    module: ModuleType, name: str, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    """log p (n,) and score (n, m) from the functor `name` of a module, also a user's own."""
    if x.ndim != 2:
        raise ValueError(f"expected a tensor of rank 2, got shape {tuple(x.shape)}")
    log_prob, score = x.new_empty(x.shape[0]), x.new_empty(x.shape)
    function = getattr(module, f"{name}_log_prob_and_score")
    function(x.contiguous(), params.contiguous(), table.contiguous(), list(layout), log_prob, score)
    return log_prob, score


def _energy_fake(
    x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape)


def _energy_vjp(
    inputs: tuple[Tensor, ...], others: list[Any], outputs: tuple[Tensor, ...], grads: Any,
    needed: list[bool],
) -> list[Tensor | None] | None:  # fmt: skip
    """The gradient of log p is the score, which is at hand; other gradients come from the reference."""
    if grads[1] is not None or needed[1]:
        return None
    return [grads[0][:, None] * outputs[1], None, None]


@native("phi4" + _ENERGY, reference=energies.phi4, fake=_energy_fake, vjp=_energy_vjp)
def phi4(
    module: ModuleType, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return energy(module, "phi4", x, params, table, layout)


@native("soft" + _ENERGY, reference=energies.phi4, fake=_energy_fake, vjp=_energy_vjp)
def soft(
    module: ModuleType, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return energy(module, "soft", x, params, table, layout)


@native("spins" + _ENERGY, reference=energies.spins, fake=_energy_fake, vjp=_energy_vjp)
def spins(
    module: ModuleType, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return energy(module, "spins", x, params, table, layout)


@native("mixture" + _ENERGY, reference=energies.mixture, fake=_energy_fake, vjp=_energy_vjp)
def mixture(
    module: ModuleType, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return energy(module, "mixture", x, params, table, layout)


@native("rings" + _ENERGY, reference=energies.rings, fake=_energy_fake, vjp=_energy_vjp)
def rings(
    module: ModuleType, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return energy(module, "rings", x, params, table, layout)


@native("funnel" + _ENERGY, reference=energies.funnel, fake=_energy_fake, vjp=_energy_vjp)
def funnel(
    module: ModuleType, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return energy(module, "funnel", x, params, table, layout)


@native("logistic" + _ENERGY, reference=energies.logistic, fake=_energy_fake, vjp=_energy_vjp)
def logistic(
    module: ModuleType, x: Tensor, params: Tensor, table: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor]:
    return energy(module, "logistic", x, params, table, layout)


# --- Flows -----------------------------------------------------------------------------------------


@native(
    "affine_couplings_vjp(Tensor x, Tensor params, float scale, int[] layout, bool inverse, Tensor image,"
    " Tensor grad_image, Tensor grad_log_det, bool weights) -> (Tensor, Tensor)",
    reference=couplings.affine_couplings_vjp,
    fake=lambda x, params, *others: (
        x.new_empty(x.shape),
        params.new_empty(params.shape if others[-1] else (0,)),
    ),
)
def affine_couplings_vjp(
    module: ModuleType, x: Tensor, params: Tensor, scale: float, layout: list[int], inverse: bool,
    image: Tensor, grad_image: Tensor, grad_log_det: Tensor, weights: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x (n, d) and, if `weights`, of params, else (0,); on the CPU from the image alone."""
    arguments = (params.contiguous(), scale, list(layout), inverse)
    if x.device.type != "cpu":  # torch's own products are near the limit of a GPU at training sizes
        return couplings.affine_couplings_vjp(
            x, *arguments, image, grad_image, grad_log_det, weights
        )
    grad_x, grad_params = x.new_empty(x.shape), params.new_empty(len(params) if weights else 0)
    tensors = (grad_image.contiguous(), grad_log_det.contiguous(), grad_x, grad_params)
    module.affine_couplings_vjp(image.contiguous(), *arguments, *tensors)
    return grad_x, grad_params


def _affine_couplings_vjp(
    inputs: tuple[Tensor, ...], others: list[Any], outputs: tuple[Tensor, ...], grads: Any,
    needed: list[bool],
) -> list[Tensor | None]:  # fmt: skip
    grad_image, grad_log_det = (
        torch.zeros_like(out) if g is None else g for g, out in zip(grads, outputs, strict=True)
    )
    found = affine_couplings_vjp(*inputs, *others, outputs[0], grad_image, grad_log_det, needed[1])
    return [found[0] if needed[0] else None, found[1] if needed[1] else None]


@native(
    "affine_couplings(Tensor x, Tensor params, float scale, int[] layout, bool inverse)"
    " -> (Tensor, Tensor)",
    reference=couplings.affine_couplings,
    fake=lambda x, params, scale, layout, inverse: (x.new_empty(x.shape), x.new_empty(x.shape[0])),
    vjp=_affine_couplings_vjp,
)
def affine_couplings(
    module: ModuleType, x: Tensor, params: Tensor, scale: float, layout: list[int], inverse: bool
) -> tuple[Tensor, Tensor]:
    """x (n, d) through the couplings, or back: the image (n, d) and ln det (n,)."""
    out, log_det = x.new_empty(x.shape), x.new_empty(x.shape[0])
    module.affine_couplings(
        x.contiguous(), params.contiguous(), scale, list(layout), inverse, out, log_det
    )
    return out, log_det


CLOSE = (
    "mixture",
    "rings",
    "funnel",
    "logistic",
    "affine_couplings",
    "affine_couplings_vjp",
)  # equal to rounding; the others to the last bit

# --- Self-test -------------------------------------------------------------------------------------


def _selftest_arguments(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    def field(n: int, m: int) -> Tensor:
        like = torch.empty(0, dtype=dtype, device=device)
        return reference.normal(like, n, m, 7, 0, 3 << 24, 0, 0)

    no_table = torch.empty(0, dtype=torch.int32, device=device)
    if name == "sum32":
        return (field(3, 71),)
    if name == "phi4":
        params = torch.tensor([2.0, 0.1, -0.3, 0.5, 1.0], dtype=dtype, device=device)
        return field(33, 10), params, no_table, [10, 2, 0, 1]
    if name == "soft":
        params = torch.tensor([1.0, 0.0, -0.3, 0.5, 0.0], dtype=dtype, device=device)
        return field(33, 30), params, no_table, [10, 2, 0, 3]
    if name == "spins":
        params = torch.tensor([0.7], dtype=dtype, device=device)
        return field(33, 20), params, no_table, [10, 2, 1, 2]
    if name == "mixture":
        params = torch.cat((field(1, 3 + 6).flatten(), field(1, 6).flatten().abs() + 0.5))
        return field(33, 2), params, no_table, [3, 2]
    if name == "rings":
        return 2 * field(33, 2), (field(1, 3).abs() + 0.5).flatten(), no_table, [3]
    if name == "funnel":
        return field(33, 9), (field(1, 2).abs() + 0.5).flatten(), no_table, [9]
    if name == "logistic":
        prior, rows = (field(1, 3).abs() + 0.5).flatten(), energies.logistic_blocks(field(21, 5))
        return field(33, 5), torch.cat((prior, rows)), no_table, [21, 5]
    if name.startswith("affine_couplings"):
        shape = couplings.Shape(7, 4, 19, 2, 2, False)
        x, params = field(33, 7), 0.3 * field(1, shape.n_parameters())[0]
        given = x, params, 0.5, shape.layout(), True
        if name == "affine_couplings":
            return given
        image, log_det = couplings.affine_couplings(*given)
        return *given, image, image, log_det, True
    kind = torch.int32 if name == "bits" else dtype
    return torch.empty(0, dtype=kind, device=device), 3, 70, 2**40 + 5, 9, 200 << 24, 11, 3


def selftest() -> list[tuple[str, str, str, bool, str]]:
    """Compare every native op with its reference on every device there is.

    Returns rows (op, device, dtype, agrees, detail). Random numbers, sums and φ⁴ must be equal to the
    last bit, what has exponentials or logarithms to rounding.
    """
    rows = []
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in map(torch.device, devices):
        module = _native.module_for(device)
        if module is None:
            continue
        for name, op in TABLE.items():
            for dtype in (torch.float32, torch.float64):
                try:
                    arguments = _selftest_arguments(name, device, dtype)
                    found, expected = op(*arguments), op.reference(*arguments)
                    if not isinstance(found, tuple):
                        found, expected = (found,), (expected,)
                    if name in CLOSE:
                        torch.testing.assert_close(found, expected)
                        agrees = True
                    else:
                        agrees = all(map(torch.equal, found, expected))
                    gap = max(float((f - e).abs().max()) for f, e in zip(found, expected))
                    detail = "" if agrees else f"largest difference {gap:.3g}"
                except Exception as error:  # a failing kernel is a row of the report, not a crash
                    agrees, detail = False, f"{type(error).__name__}: {error}".splitlines()[0]
                rows.append((name, device.type, str(dtype).removeprefix("torch."), agrees, detail))
    return rows
