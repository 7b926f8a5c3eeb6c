"""What one optimiser does with its turn's weights: float32 masters, a move, clipping, the rate's way, an average.

Turns whose parameters are not float32 get float32 masters: gradients are added up and steps taken there, and the
parameters are their rounded copies (a step of a learning rate of 1e-5 is lost in bfloat16's 8 bits).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer

from disegno.core.errors import KeyMismatch
from disegno.core.teach import OptimiserName, RateSchedule, TeachRequest
from disegno.training.adamw8bit import AdamW8bit
from disegno.training.base import Turn
from disegno.training.muon import Muon

_FUSED = ("cpu", "cuda")  # one kernel for all tensors; for 600 small ones on a CPU the difference is a few milliseconds

_DECAYS: dict[RateSchedule, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def rate_at(step: int, peak: float, request: TeachRequest) -> float:
    """Return the learning rate of a step, from 0: linear up to the peak in the warm-up, then as the schedule goes."""
    if step < request.warmup:
        return peak * (step + 1) / (request.warmup + 1)
    done = (step - request.warmup) / max(1, request.steps - request.warmup)
    return peak * _DECAYS[request.rate_schedule](min(done, 1.0))


@dataclass(frozen=True)
class Pupil:
    """A turn, its masters and optimiser. `average`: of the masters, empty where none is kept."""

    turn: Turn
    masters: Mapping[str, nn.Parameter]
    optimiser: Optimizer
    decay: float = 0.0
    average: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Return what a file gets: the average where one is kept, else the masters."""
        return self.average or self.masters


def open_pupil(turn: Turn, request: TeachRequest) -> Pupil:
    """Return the turn, ready."""
    masters = {
        name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for name, p in turn.parameters.items()
    }
    optimiser = _OPTIMISERS[request.optimiser](list(masters.values()), request.weight_decay)
    average = {name: master.detach().clone() for name, master in masters.items()} if request.ema else {}
    return Pupil(turn, masters, optimiser, request.ema, average)


def _adamw(parameters: list[nn.Parameter], weight_decay: float) -> Optimizer:
    fused = all(p.device.type in _FUSED for p in parameters)
    return AdamW(parameters, weight_decay=weight_decay, fused=fused)


def _adamw8bit(parameters: list[nn.Parameter], weight_decay: float) -> Optimizer:
    return AdamW8bit(parameters, weight_decay=weight_decay)


def _muon(parameters: list[nn.Parameter], weight_decay: float) -> Optimizer:
    return Muon(parameters, weight_decay=weight_decay)


_OPTIMISERS: dict[OptimiserName, Callable[[list[nn.Parameter], float], Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "muon": _muon,
}


def collect(pupil: Pupil) -> None:
    """Add what a backward pass left on the parameters to the masters' gradients."""
    for name, parameter in pupil.turn.parameters.items():
        master = pupil.masters[name]
        if master is not parameter and parameter.grad is not None:
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None


def forget(pupil: Pupil) -> None:
    """Drop all gradients."""
    for parameter in (*pupil.turn.parameters.values(), *pupil.masters.values()):
        parameter.grad = None


def gradients(pupil: Pupil) -> list[Tensor]:
    """Return the gradients that there are, in the turn's order."""
    return [master.grad for master in pupil.masters.values() if master.grad is not None]


def norm(pupil: Pupil) -> Tensor:
    """Return the norm over all gradients, a scalar; NaN or infinite where one of them is."""
    return get_total_norm(gradients(pupil))


def update(pupil: Pupil, rate: float, clip: float, total: Tensor, count: int) -> None:
    """Take the optimiser's step. `total`: the gradients' norm; `count`: updates before this one, for the average."""
    if clip:
        clip_grads_with_norm_(pupil.masters.values(), clip, total)
    for group in pupil.optimiser.param_groups:
        group["lr"] = rate
    pupil.optimiser.step()
    with torch.no_grad():
        for name, parameter in pupil.turn.parameters.items():
            if pupil.masters[name] is not parameter:
                parameter.copy_(pupil.masters[name])
        if pupil.average:
            # rises to `decay` as the original's LitEma: an average that begins at the start would stay there for long
            decay = min(pupil.decay, (1 + count) / (10 + count))
            torch._foreach_lerp_(list(pupil.average.values()), list(pupil.masters.values()), 1 - decay)  # pyright: ignore[reportPrivateUsage]


# ---- in and out of a checkpoint: kind -> "turn|name" or "turn|name|state" -> tensor


def tensors_of(pupil: Pupil) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (kind, name, tensor) of all that a checkpoint must hold."""
    for name, master in pupil.masters.items():
        key = f"{pupil.turn.name}|{name}"
        yield "weights", key, master.detach()
        for word, value in pupil.optimiser.state.get(master, {}).items():
            yield "optimiser", f"{key}|{word}", value if isinstance(value, Tensor) else torch.tensor(value)
    for name, tensor in pupil.average.items():
        yield "average", f"{pupil.turn.name}|{name}", tensor


def restore(pupil: Pupil, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give the pupil what `tensors_of` said. Raises KeyMismatch where it is of another training."""
    weights, averages = tensors.get("weights", {}), tensors.get("average", {})
    own = {f"{pupil.turn.name}|{name}": master for name, master in pupil.masters.items()}
    for key, master in own.items():
        if key not in weights or weights[key].shape != master.shape:
            raise KeyMismatch(f"The checkpoint has no {key} of shape {tuple(master.shape)}: it is of another training.")
    states: dict[str, dict[str, Tensor | int]] = {}
    for key, value in tensors.get("optimiser", {}).items():
        whose, _, word = key.rpartition("|")
        if whose in own:
            states.setdefault(whose, {})[word] = _state(value, own[whose])
    with torch.no_grad():
        for name, parameter in pupil.turn.parameters.items():
            key = f"{pupil.turn.name}|{name}"
            pupil.masters[name].copy_(weights[key])
            parameter.copy_(pupil.masters[name])
            pupil.optimiser.state[pupil.masters[name]] = states.get(key, {})
            if pupil.average:
                pupil.average[name].copy_(averages[key])


def _state(value: Tensor, master: Tensor) -> Tensor | int:
    """Return an optimiser's state as it keeps it: some count their steps in a Python number.

    Moments lie in memory as their weights do, whatever the file's order is: a fused optimiser goes through all of them
    by address, and would take other weights' moments (on a CPU) or refuse (on a GPU).
    """
    if value.dtype == torch.int64 and not value.ndim:
        return int(value)
    if value.shape == master.shape:
        return torch.empty_like(master, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.to(master.device, copy=True)
