"""FlowMCMC: a flow learns a target from the Markov chains that it speeds up, and then proposes to them.

Walkers start at known points, move by a local kernel and by independent proposals of the flow, and the flow
is trained on where they are (flow_training.py; Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119,
2022, arXiv 2105.12603). The flow is then left as it is, and chains that start from the walkers draw with
it, in one of the ways that Grenioux, Durmus, Moulines, Gabrié compare (ICML 2023, arXiv 2302.04763): as
proposal of IMH, i-SIR or their mixtures with the local kernel, or as change of variables (neutra).
Importance sampling with the same flow gives log Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from pysamp import train
from pysamp.distributed import show_progress, world
from pysamp.mcmc.adapt import warm_up
from pysamp.mcmc.base import Kernel, Tunable, replace
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.independent import IMH, ISIR
from pysamp.mcmc.langevin import MALA, ULA
from pysamp.mcmc.mixed import AdaptiveMCMC, Ex2MCMC
from pysamp.mcmc.neutra import Neutra
from pysamp.nets.flow import Flow, as_flow
from pysamp.samplers.arguments import (
    check_at_least,
    check_budget,
    check_n,
    check_number,
    check_positive,
    counted,
)
from pysamp.samplers.flow_training import (
    LOSSES,
    ScaleWeights,
    Trained,
    Watch,
    prepared_flow,
    train_flow,
)
from pysamp.samplers.importance import OTHER_SEED, Importance
from pysamp.samples import Samples
from pysamp.tally import Tally, merge_info
from pysamp.target import Counted, Target

SAMPLERS = ("adaptive", "ex2", "imh", "isir", "neutra")
PARTS = 20  # of a training, whose mean acceptances are compared
MIN_ACCEPT = 0.02  # below which there was nothing to lose
BLOCK = 128  # transitions of one call: bounds the memory of what they propose, and moves the bar


@dataclass(frozen=True, eq=False)
class FlowMCMC:
    """Train a flow while sampling, then sample with it.

    What it can find. With the forward loss the flow learns the modes in which there are walkers, and the
    global moves set their weights right, however unequal the numbers that start in each. Walkers that all
    start in one mode never leave it: the flow then accepts well and log Z is that of the one mode, and
    nothing shows it. Give a start in every mode that is known, or none: the walkers then begin at draws of
    the untrained flow, and find what lies under its base density. The backward loss needs no walkers in
    the modes, but seeks out one of several where they are far apart; "convex" is no cure for that, it
    keeps the tails of q in check.

    flow: any of pysamp.nets or zuko, a template that is copied. Its base should have the scales of the
    target inside a mode: the couplings of RealNVP change each log scale by at most 1. Left out, it is
    RealNVP(event_shape) with a normal base whose mean is that of the burnt-in walkers, and whose
    covariance theirs about the means of those that started at one point.
    loss, alpha: see flow_training.py. n_walkers, batch: chains, and states of a training step, a multiple
    of them; few walkers give the flow correlated batches. n_steps: training steps.
    start: points (m, *event) that the walkers are shared out to. local: their kernel, whose scale, if
    left out, `burn_in` local steps find. use_flow: global moves while training, one every `lag` local
    steps; False leaves the weights of the modes as they started, in the flow too.
    learning_rate, decay, weight_decay, clip: see `pysamp.train.fit`; a cosine to 0 by default, gradients
    clipped to norm 1. The rate is 1e-2 for RealNVP, whose log scales are bounded, and 1e-3 for other flows:
    splines become too steep for float32 at higher ones, which is an error at the end of the training.
    weight_penalty: of the squares of the weights of scale networks. stop_accept: ends
    the training when the running mean of the acceptance of the flow's proposals exceeds it.
    sampler: of the draws: "adaptive" or "ex2" with `n_local` local steps between global moves, "imh",
    "isir", or "neutra", `local` in latent space; `n_candidates` are those of "ex2" and "isir". n_chains:
    of the draws; they start where evenly spaced walkers ended and make `warmup` transitions first.
    n_importance: draws of the flow for log Z; 0 leaves it out.

    Cost: n_walkers · burn_in local steps; a training step has batch · lag local steps, 2 batch values and
    batch scores for global moves, and batch values and scores where the loss has a backward part.

    Raises ValueError, TypeError for arguments that cannot be used.
    """

    flow: Any = None
    loss: str = "forward"
    alpha: float = 0.8
    n_walkers: int = 1024
    batch: int = 1024
    n_steps: int = 1000
    start: Tensor | None = None
    local: Kernel = field(default_factory=MALA)
    use_flow: bool = True
    lag: int = 5
    burn_in: int = 300
    learning_rate: float | None = None
    decay: train.Decay = "cosine"
    weight_decay: float = 0.0
    weight_penalty: float = 0.0
    clip: float | None = 1.0
    stop_accept: float | None = None
    sampler: str = "adaptive"
    n_candidates: int = 40
    n_local: int = 2
    n_chains: int = 64
    warmup: int = 100
    n_importance: int = 10_000

    def __post_init__(self) -> None:
        _check(self)

    # ------------------------------------------------------------------------ training
    def train(
        self, target: Target, *, seed: int, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, progress: bool = False,
        checkpoint: str | PathLike | None = None, watch: Watch | None = None,
    ) -> Trained:  # fmt: skip
        """Burn in the walkers and train the flow.

        device, dtype: those of the flow by default. checkpoint: a file that holds network, optimiser and
        walkers as they were at most 50 steps ago; where it exists, training goes on from it, to the same
        bits. watch(step, flow, x): called in each training step, with the walkers where they have moved and
        the flow as it was then; the numbers that it returns by name are kept in `history.terms`.

        Raises ValueError for a flow of another event shape or that does not invert where the walkers
        are, for walkers where the target has no density, and for a checkpoint of another training;
        pysamp.train.NonFiniteError where a loss or gradient is not finite.
        """
        counting = counted(target, "FlowMCMC")
        return self._train(counting, seed, device, dtype, progress, checkpoint, watch)

    def _train(
        self, target: Counted, seed: int, device: torch.device | str | None,
        dtype: torch.dtype | None, progress: bool, checkpoint: str | PathLike | None,
        watch: Watch | None = None,
    ) -> Trained:  # fmt: skip
        own = torch.empty(0) if self.flow is None else as_flow(self.flow).like
        like = own.new_empty(0, device=device or own.device, dtype=dtype or own.dtype)
        with (
            torch.inference_mode(False),  # a tensor made in inference mode cannot be trained
            show_progress(self.n_steps, "training", world(), show=progress) as bar,
        ):
            flow = prepared_flow(self.flow, target, like)
            return train_flow(
                self, target, flow, seed=seed, checkpoint=checkpoint, watch=watch, bar=bar
            )

    # ------------------------------------------------------------------------ draws
    def sample(
        self, target: Target, n: int, *, seed: int, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, progress: bool = False,
        checkpoint: str | PathLike | None = None,
    ) -> Samples:  # fmt: skip
        """Train, then make n draws x (n_chains, n / n_chains, *event), n a multiple of n_chains, or less.

        info: accept and flow_accept of the chains; log_z ± log_z_error, importance_ess and pareto_k of
        `n_importance` draws of the flow; by training step "loss" and "train_accept", the acceptance of
        the flow's proposals; "train_steps", "step_size" of the walkers; evaluations and gradients of all.
        Raises as `train`; ValueError for n.
        """
        n_chains, n_draws = self._shape(n)
        target = counted(target, "FlowMCMC")
        trained = self._train(target, seed, device, dtype, progress, checkpoint)
        flow = trained.flow
        other = (seed + 2 * OTHER_SEED) % (1 << 64)  # the training used the numbers of `seed`
        tally = Tally()
        with torch.no_grad():
            kernel = self._kernel(flow, trained.local)
            state = kernel.init(target, trained.starts(n_chains), seed=other)
            total = self.warmup + n_draws
            with show_progress(total, "draws", world(), show=progress) as bar:
                kernel, state, _ = warm_up(kernel, target, state, self.warmup, progress=bar.update)
                parts = []
                for begin in range(0, n_draws, BLOCK):
                    steps = min(BLOCK, n_draws - begin)
                    state, info = kernel.step(target, state, steps, thin=1)
                    tally.add({"accept": info.accept, **info.extra}, steps)
                    parts.append((info.x, info.log_prob))
                    bar.update(steps)
        draws, log_prob = (torch.cat(values, 1) for values in zip(*parts, strict=True))
        report = merge_info([n_chains], [tally])
        report.pop("seconds")
        report |= {"markov": True, "warmup": self.warmup, **self._of_training(trained)}
        found = self._log_z(flow, target, seed)
        warnings = [*astray(trained.history), *found.pop("warnings", [])]
        report |= {
            **found,
            "evaluations": target.evaluations,
            "gradients": target.gradients,
            "notes": self._notes(),
            "warnings": warnings,
        }
        return Samples(draws, log_prob, None, report)

    def _kernel(self, flow: Flow, local: Kernel) -> Kernel:
        if self.sampler == "adaptive":
            return AdaptiveMCMC(flow, local, self.n_local)
        if self.sampler == "ex2":
            return Ex2MCMC(flow, self.n_candidates, local, self.n_local)
        if self.sampler == "neutra":
            return Neutra(self.local, flow)  # its scale is one of latent space
        return IMH(flow) if self.sampler == "imh" else ISIR(flow, self.n_candidates)

    def _shape(self, n: int) -> tuple[int, int]:
        """Chains, and draws of each."""
        check_n(n)
        n_chains = min(self.n_chains, n)
        if n % n_chains:
            raise ValueError(
                f"n must be a multiple of n_chains = {self.n_chains}, as each chain makes as many draws, "
                f"got {n}: take {n // n_chains * n_chains} or {-(-n // n_chains) * n_chains}"
            )
        return n_chains, n // n_chains

    def _of_training(self, trained: Trained) -> dict[str, Any]:
        history = trained.history
        scale = trained.local.scale() if isinstance(trained.local, Tunable) else None
        return {
            "loss": history.loss,
            "train_steps": history.steps,
            "train_nonfinite": trained.nonfinite,
            **({"train_accept": history.terms["accept"]} if "accept" in history.terms else {}),
            **({} if scale is None else {"step_size": scale}),
        }

    def _log_z(self, flow: Flow, target: Counted, seed: int) -> dict[str, Any]:
        """log Z and what is said of the weights, by importance sampling."""
        if not self.n_importance:
            return {}
        info = Importance(flow).sample(target, self.n_importance, seed=seed).info
        return {
            "log_z": info["log_z"],
            "log_z_error": info["log_z_error"],
            "importance_ess": info["ess"],
            "pareto_k": info["pareto_k"],
            "warnings": [f"log Z: {text}" for text in info["warnings"]],
        }

    def _notes(self) -> list[str]:
        where = "at draws of the untrained flow" if self.start is None else "at the points given"
        if self.loss == "backward":
            told = "the flow was trained on its own draws alone, and may have left modes out"
        else:
            told = f"the flow knows the modes that walkers were in, which started {where}"
        found = [f"{told}: neither acceptance nor log Z shows a mode that is missed"]
        if isinstance(self.local, ULA):
            found.append(
                "the walkers moved by ULA, whose law has a bias that grows with the step size"
            )
        return found

    # ------------------------------------------------------------------------ budget
    def for_budget(self, n: int, gradients: int) -> FlowMCMC:
        """The same with as many training steps as fit: all evaluations, of n draws too, within `gradients`.

        Raises ValueError where not even one step fits, and for a local kernel of unknown cost.
        """
        check_budget(n, gradients)
        n_chains, n_draws = self._shape(n)
        local = self._local_cost()
        # an i-SIR move evaluates the candidates, a mixed one also the score where it ends
        moves = self.n_candidates if self.sampler in ("ex2", "isir") else 2
        global_share = {"imh": 1.0, "isir": 1.0, "neutra": 0.0}.get(
            self.sampler, 1 / (1 + self.n_local)
        )
        draws = n_chains * (self.warmup + n_draws)
        drawing = math.ceil(draws * (global_share * moves + (1 - global_share) * local))
        if global_share not in (0.0, 1.0):  # the first and the last period may be cut
            drawing += n_chains * moves
        fixed = drawing + n_chains * 2 + self.n_importance
        fixed += self.n_walkers * (2 + self.burn_in * local)
        step = 0
        if self.loss != "backward":
            step += self.batch * (self.lag * local + (2 if self.use_flow else 0))
        if self.loss != "forward":
            step += self.batch
        check_budget(n, gradients, least=fixed + step)
        return replace(self, n_steps=(gradients - fixed) // step)

    def _local_cost(self) -> int:
        if isinstance(self.local, MALA):
            return 1
        if isinstance(self.local, HMC) and self.local.trajectory_length is None:
            return self.local.n_leapfrog
        raise ValueError(
            f"local must be MALA, or HMC with n_leapfrog, for a budget, got {type(self.local).__name__}"
        )


def astray(history: train.History) -> list[str]:
    """A sentence where the flow at the end accepts less than half of what it once did."""
    accept = history.terms.get("accept")
    if accept is None or history.steps < PARTS:
        return []
    means = torch.stack([part.mean() for part in accept.chunk(PARTS)])
    best, last = float(means.max()), float(means[-1])
    if best < MIN_ACCEPT or last >= best / 2:
        return []
    return [
        f"training went astray: the flow's proposals were accepted with probability {best:.2g}, at the end "
        f"with {last:.2g}; use a smaller learning_rate, or a smaller clip"
    ]


# ------------------------------------------------------------------------------------- arguments
def _check(s: FlowMCMC) -> None:
    if s.flow is not None:
        flow = as_flow(s.flow)
        if not any(parameter.requires_grad for parameter in flow.parameters()):
            raise ValueError(
                f"flow must have parameters to train, got {type(flow).__name__}, which has none; of zuko "
                "give the lazy module, not the distribution that it returns"
            )
        if s.weight_penalty and not isinstance(flow, ScaleWeights):
            raise TypeError(
                "flow must have scale_weights, as RealNVP has, where weight_penalty is not 0, got "
                f"{type(flow).__name__}"
            )
    for name, value, allowed in (("loss", s.loss, LOSSES), ("sampler", s.sampler, SAMPLERS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, least in (
        ("n_walkers", 1), ("batch", 1), ("n_steps", 1), ("lag", 1), ("burn_in", 0),
        ("n_candidates", 2), ("n_local", 1), ("n_chains", 1), ("warmup", 0), ("n_importance", 0),
    ):  # fmt: skip
        check_at_least(getattr(s, name), least, name)
    if s.batch % s.n_walkers:
        raise ValueError(f"batch must be a multiple of n_walkers = {s.n_walkers}, got {s.batch}")
    check_number(s.alpha, "alpha")
    if not 0 < s.alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {s.alpha}")
    if s.learning_rate is not None:
        check_positive(s.learning_rate, "learning_rate")
    if s.clip is not None:
        check_positive(s.clip, "clip")
    if s.decay not in ("cosine", None) and not isinstance(s.decay, train.StepDecay):
        raise ValueError(f'decay must be "cosine", a StepDecay or None, got {s.decay!r}')
    for name in ("weight_decay", "weight_penalty"):
        check_number(getattr(s, name), name)
        if not 0 <= getattr(s, name) < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {getattr(s, name)}")
    if isinstance(s.local, type) or not isinstance(s.local, Kernel):
        raise TypeError(f"local must be a kernel, got {s.local!r}")
    if isinstance(s.local, ULA) and (s.use_flow or s.sampler in ("adaptive", "ex2")):
        raise TypeError("local must leave its target invariant, got ULA")
    if isinstance(s.local, Tunable) and s.local.scale() is None and not s.burn_in:
        raise ValueError(
            f"burn_in must be positive where local = {type(s.local).__name__} has no step size or width, "
            "got 0"
        )
    if not isinstance(s.use_flow, bool):
        raise TypeError(f"use_flow must be True or False, got {s.use_flow!r}")
    untuned = isinstance(s.local, Tunable) and s.local.scale() is None
    if s.sampler == "neutra" and s.warmup == 0 and untuned:
        raise ValueError(
            "warmup must be positive, or local have a step size, for sampler = 'neutra': that of latent "
            f"space is found in warm-up, got warmup = {s.warmup} and {s.local}"
        )
    _check_stop(s)
    _check_start(s)
    if s.flow is None and s.start is not None and s.burn_in == 0:
        raise ValueError(
            "burn_in must be positive where flow is left out, as the spread of the walkers around their "
            f"start sets its base, got {s.burn_in}"
        )


def _check_stop(s: FlowMCMC) -> None:
    if s.stop_accept is None:
        return
    check_number(s.stop_accept, "stop_accept")
    if not 0 < s.stop_accept < 1:
        raise ValueError(f"stop_accept must lie in (0, 1), got {s.stop_accept}")
    if s.loss == "forward" and not s.use_flow:
        raise ValueError(
            f"stop_accept = {s.stop_accept} needs proposals of the flow while training: use_flow is False"
        )


def _check_start(s: FlowMCMC) -> None:
    if s.start is None:
        return
    points = torch.as_tensor(s.start).detach()
    if points.ndim < 2 or not points.is_floating_point() or not len(points):
        raise ValueError(
            f"start must be points (m, *event) of floats, got {points.dtype} {tuple(points.shape)}"
        )
    if s.flow is not None and tuple(points.shape[1:]) != tuple(as_flow(s.flow).event_shape):
        raise ValueError(
            f"start must be points of the event shape of the flow, {as_flow(s.flow).event_shape}, got "
            f"{tuple(points.shape[1:])}"
        )
    if len(points) > s.n_walkers:
        raise ValueError(
            f"n_walkers must be at least the number of points of start, {len(points)}, got {s.n_walkers}"
        )
    object.__setattr__(s, "start", points)
