"""Training a flow q on a target p by Markov chains that the flow itself helps along, or by its own draws.

    forward    −E_p[log q(x)]             x: the chains ("walkers"), which stand for draws of p
    backward   E_q[log q(x) − log p(x)]   x: draws of q
    convex     α forward + (1 − α) backward

The adaptive scheme is that of Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119 (2022), arXiv
2105.12603: at each training step the walkers make a global move, independent Metropolis–Hastings with
proposals of the flow as it is, and `lag` local ones, and the flow then takes a gradient step on where
they are. The losses and the penalty on networks of scales are those of Grenioux, Durmus, Moulines, Gabrié,
ICML 2023, arXiv 2302.04763.

The gradient of −E_p[log q] needs no score of the target; that of the backward loss needs one a draw, and no
graph goes through the target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp import train
from pysamp.describe import digest
from pysamp.distributed import Progress, show_loss
from pysamp.fingerprint import fingerprint
from pysamp.mcmc.adapt import warm_up
from pysamp.mcmc.base import Kernel, State, Tunable, replace
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.mixed import AdaptiveMCMC
from pysamp.mcmc.proposals import check_proposal
from pysamp.nets.bases import Normal
from pysamp.nets.flow import Flow, as_flow, check_event, check_invertible
from pysamp.nets.realnvp import RealNVP
from pysamp.samplers.importance import independent_accept
from pysamp.samplers.reverse_kl import at_draws
from pysamp.target import Counted, log_prob_of

if TYPE_CHECKING:
    from pysamp.samplers.flow_mcmc import FlowMCMC

Watch = Callable[[int, Flow, Tensor], "dict[str, Tensor | float]"]
LOSSES = ("forward", "backward", "convex")
EVERY = 50  # training steps between checkpoints
ENOUGH = 2  # walkers for each coordinate, from which their covariance is taken whole
MEMORY = 0.98  # of the running mean of the acceptance that may end a training: some 50 steps


@runtime_checkable
class ScaleWeights(Protocol):
    """A flow whose networks of scales a penalty may act on."""

    def scale_weights(self) -> list[Tensor]: ...


@dataclass(frozen=True, eq=False)
class Trained:
    """A flow, and the walkers that it was trained on.

    `history.terms` has, (steps,) each: "accept", the mean acceptance of proposals of the flow, by the
    walkers, or by the weights of the flow's own draws where walkers make no global moves;
    "local_accept" of walkers that moved; and the terms of the loss.
    """

    flow: Flow
    walkers: Tensor  # (n_walkers, *event)
    local: Kernel  # with the scale that burn-in found
    history: train.History
    nonfinite: int  # proposals with a density NaN or +∞
    evaluations: int
    gradients: int

    def starts(self, n: int) -> Tensor:
        """Where n chains may start: walkers that are evenly spaced among all; (n, *event)."""
        rows = torch.arange(n, device=self.walkers.device) * len(self.walkers) // n
        return self.walkers[rows % len(self.walkers)]


def prepared_flow(given: Any, target: Counted, like: Tensor) -> Flow:
    """A copy of the flow to be trained, of the device and dtype of `like`; the given one is not touched.

    Where none is given, one whose base the walkers will set.
    """
    event = tuple(target.event_shape)
    if given is None:
        d = math.prod(event)
        if d < 2:
            raise ValueError(
                f"target must have at least 2 coordinates where flow is None, got event_shape {event}"
            )
        flow: Flow = RealNVP(event, base=Normal(mean=torch.zeros(d), covariance=torch.eye(d)))
    else:
        flow = copy.deepcopy(as_flow(given))
    check_event(flow, target)
    return flow.to(device=like.device, dtype=like.dtype)


def train_flow(
    settings: FlowMCMC, target: Counted, flow: Flow, *, seed: int, checkpoint: Any, watch: Watch | None,
    bar: Progress,
) -> Trained:  # fmt: skip
    """Train `flow`, in place. Raises as `FlowMCMC.train`."""
    s = settings
    walkers = Walkers(s, target, flow, seed)
    moved = s.loss != "backward"

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        walkers.begin()
        terms: dict[str, Tensor | float] = {}
        total: Tensor | float = 0.0
        if moved:
            x, terms = walkers.move()
            forward = -flow.log_prob(x).mean()
            terms["forward"] = forward
            total = forward if s.loss == "forward" else s.alpha * forward
        if s.loss != "forward":
            backward, accept = _backward(flow, target, s.batch, seed, step)
            terms["backward"] = backward
            terms.setdefault("accept", accept)
            total = total + (backward if s.loss == "backward" else (1 - s.alpha) * backward)
        if s.weight_penalty:
            assert isinstance(flow, ScaleWeights)
            terms["penalty"] = s.weight_penalty * squared_weights(flow)
            total = total + terms["penalty"]
        assert isinstance(total, Tensor)
        if watch is not None:
            terms |= watch(step, flow, walkers.now.x)
        walkers.remember(terms.get("accept"))
        return total, terms

    limit = s.stop_accept
    history = train.fit(
        loss,
        flow,
        steps=s.n_steps,
        lr=s.learning_rate or (1e-2 if isinstance(flow, RealNVP) else 1e-3),
        lr_decay=s.decay,
        weight_decay=s.weight_decay,
        clip=s.clip,
        carry=walkers,
        checkpoint=checkpoint,
        identity=None if checkpoint is None else _identity(s, target, flow, seed),
        every=EVERY,
        callback=lambda step, row: show_loss(bar, row),
        stop=None if limit is None else lambda step, row: walkers.recent > limit,
    )
    try:
        check_invertible(flow, walkers.now.x)
    except ValueError as error:
        raise RuntimeError(
            f"after {history.steps} training steps the {error}; use a smaller learning_rate or float64"
        ) from error
    return Trained(
        flow,
        walkers.now.x,
        walkers.adapted(),
        history,
        walkers.nonfinite,
        target.evaluations,
        target.gradients,
    )


def _backward(flow: Flow, target: Counted, n: int, seed: int, step: int) -> tuple[Tensor, float]:
    """E_q[log q − log p] over n draws, and the acceptance that their weights tell of."""
    log_q, log_p = at_draws(flow, target, n, seed, step)
    return (log_q - log_p).mean(), independent_accept((log_p - log_q).detach().double())


def squared_weights(flow: ScaleWeights) -> Tensor:
    """The sum of the squares of the weights of scale networks, ()."""
    return torch.stack([weight.square().sum() for weight in flow.scale_weights()]).sum()


# ------------------------------------------------------------------------------------- walkers
class Walkers:
    """The chains that a flow is trained on: `train.Carried`, so a checkpoint holds them.

    They start, and are burnt in, when training does, or are put back where a checkpoint has them.
    """

    def __init__(self, settings: FlowMCMC, target: Counted, flow: Flow, seed: int) -> None:
        self.settings, self.target, self.flow, self.seed = settings, target, flow, seed
        self.local = settings.local
        self.state: State | None = None
        self.recent = 0.0  # running mean of the acceptance of the flow's proposals
        self.nonfinite = 0

    @property
    def now(self) -> State:
        assert self.state is not None
        return self.state

    def begin(self) -> None:
        """Put the walkers at their start and burn them in with local moves, once."""
        if self.state is not None:
            return
        s = self.settings
        with torch.no_grad():
            state = self.local.init(self.target, self._start(), seed=self.seed)
            if s.burn_in:
                self.local, state, _ = warm_up(self.local, self.target, state, s.burn_in)
            if s.flow is None:
                self.flow.base = self._base(state.x).to(self.flow.like)
            check_proposal(self.flow, self.target, state.x, "FlowMCMC")
        # Global moves are those transitions whose number is a multiple of the period.
        self.state = replace(state, step=-(-state.step // self.period) * self.period)

    def adapted(self) -> Kernel:
        """The local kernel with the scale, and the masses, that were found."""
        masses = self.now.aux.get("inverse_mass")
        if isinstance(self.local, HMC) and masses is not None:
            return replace(self.local, inverse_mass=masses[0].clone())
        return self.local

    @property
    def period(self) -> int:
        return self.settings.lag + (1 if self.settings.use_flow else 0)

    def move(self) -> tuple[Tensor, dict[str, Tensor | float]]:
        """As many rounds of moves as make a batch, and all states at their ends: (batch, *event)."""
        s = self.settings
        rounds = s.batch // s.n_walkers
        kernel = AdaptiveMCMC(self.flow, self.local, s.lag) if s.use_flow else self.local
        with torch.no_grad():
            self.state, info = kernel.step(
                self.target, self.now, rounds * self.period, thin=self.period
            )
        assert info.x is not None
        if "nonfinite" in info.extra:
            self.nonfinite += int(info.extra["nonfinite"].sum())
        local = info.extra["local_accept"] if s.use_flow else info.accept
        terms: dict[str, Tensor | float] = {"local_accept": local.mean()}
        if s.use_flow:
            terms["accept"] = info.extra["flow_accept"].mean()
        return info.x.flatten(0, 1), terms

    def remember(self, accept: Tensor | float | None) -> None:
        if accept is not None:
            self.recent = MEMORY * self.recent + (1 - MEMORY) * float(accept)

    def _start(self) -> Tensor:
        """(n_walkers, *event): the known points, in turn blocks of equal size; or draws of the flow."""
        s, like = self.settings, self.flow.like
        if s.start is None:
            points, _ = self.flow.sample_and_log_prob(s.n_walkers, seed=self.seed, stream="start")
        else:
            points = s.start.to(device=like.device, dtype=like.dtype)
        log_prob = log_prob_of(self.target, points)
        bad = (~torch.isfinite(log_prob)).nonzero().flatten()
        if len(bad):
            row = int(bad[0])
            what = (
                "start has" if s.start is not None else "start is None, and draws of the flow have"
            )
            raise ValueError(
                f"{what} no finite log_prob in {len(bad)} of {len(points)} points: point {row} has "
                f"log_prob = {float(log_prob[row])}"
            )
        return points[self._point(len(points))]

    def _point(self, m: int) -> Tensor:
        """Which of m points each walker starts at: blocks of walkers, as equal as can be."""
        n = self.settings.n_walkers
        return torch.arange(n, device=self.flow.like.device) * m // n

    def _base(self, x: Tensor) -> Normal:
        """A normal density of the mean of the walkers, and of their covariance inside a mode.

        Inside is about the mean of those that started at the same point; only variances, where walkers are
        too few for more.
        """
        x = x.flatten(1).double()
        n, d = x.shape
        m = 1 if self.settings.start is None else len(self.settings.start)
        point = self._point(m)
        sums = x.new_zeros(m, d).index_add_(0, point, x)
        off = x - (sums / torch.bincount(point, minlength=m)[:, None])[point]
        free = n - m
        if free < 1:
            return Normal(mean=x.mean(0), covariance=torch.eye(d))
        if free < ENOUGH * d:
            return Normal(mean=x.mean(0), covariance=torch.diag(off.square().sum(0) / free))
        return Normal(mean=x.mean(0), covariance=off.T @ off / free)

    # ------------------------------------------------------------------------ checkpoints
    def tensors(self) -> dict[str, Tensor]:
        state = self.now
        scale = self.local.scale() if isinstance(self.local, Tunable) else None
        found = {
            "x": state.x,
            "log_prob": state.log_prob,
            "step": torch.tensor(state.step),
            "recent": torch.tensor(self.recent, dtype=torch.float64),
            "nonfinite": torch.tensor(self.nonfinite),
            **{f"counts.{name}": torch.tensor(n) for name, n in vars(self.target.counts).items()},
            **{f"aux.{name}": value for name, value in state.aux.items()},
        }
        if self.settings.flow is None:  # its base came from the walkers
            found |= self._base_buffers()
        if state.score is not None:
            found["score"] = state.score
        if scale is not None:
            found["scale"] = torch.as_tensor(scale, dtype=torch.float64)
        return found

    def _base_buffers(self) -> dict[str, Tensor]:
        buffers = self.flow.named_buffers()
        return {name: buffer for name, buffer in buffers if name.startswith("base.")}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        device = self.flow.like.device
        there = {name: value.to(device) for name, value in tensors.items()}
        aux = {name[4:]: value for name, value in there.items() if name.startswith("aux.")}
        self.state = State(
            there["x"],
            there["log_prob"],
            there.get("score"),
            self.seed,
            int(tensors["step"]),
            0,
            aux,
        )
        if self.settings.flow is None:
            for name, buffer in self._base_buffers().items():
                buffer.copy_(there[name])
        self.recent = float(tensors["recent"])
        self.nonfinite = int(tensors["nonfinite"])
        for name in vars(self.target.counts):
            setattr(self.target.counts, name, int(tensors[f"counts.{name}"]))
        if "scale" in tensors and isinstance(self.local, Tunable):
            scale = tensors["scale"]
            self.local = self.local.with_scale(scale.to(there["x"]) if scale.ndim else float(scale))


def _identity(settings: FlowMCMC, target: Counted, flow: Flow, seed: int) -> dict[str, Any]:
    """What must be the same for a training to go on, besides the arguments of fit."""
    s = settings
    names = (
        "loss", "alpha", "n_walkers", "batch", "use_flow", "lag", "burn_in", "weight_penalty",
        "stop_accept",
    )  # fmt: skip
    return {
        **{name: getattr(s, name) for name in names},
        "seed": seed,
        "dtype": str(flow.like.dtype),
        "target": f"{type(target.base).__name__} {fingerprint(target)[:12]}",
        "start": None if s.start is None else digest(s.start)[:12],
        "local": f"{type(s.local).__name__} {digest(s.local)[:12]}",
        "flow": f"{type(flow).__name__}({flow.extra_repr()}) {digest(flow)[:12]}",
    }
