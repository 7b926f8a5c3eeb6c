"""What a sampler is: a coroutine that yields questions and is sent answers. It never calls a model.

def euler(x, plan):
    for sigma, sigma_next in pairwise(plan.sigmas):
        denoised = yield from ask(x, sigma)
        d = (x - denoised) / sigma
        x = x + d * (sigma_next - sigma)
    return x
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from disegno.diffusion.schedules import NoiseTable


@dataclass(frozen=True)
class Eval:
    """A question: the denoised estimate (x0) of x (b c h w) at the noise level sigma.

    `split`: also wants the estimate under the negative prompt alone; the answer is then the pair (guided, negative).
    """

    x: Tensor
    sigma: Tensor  # scalar
    split: bool = False


Answer = Tensor | tuple[Tensor, Tensor]
Sampling = Generator[Eval, Answer, Tensor]


def ask(x: Tensor, sigma: Tensor) -> Sampling:
    """Return the x0 estimate of x at sigma, (b c h w), float32 whatever the dtype of the answer."""
    answer = yield Eval(x, sigma)
    return (answer if isinstance(answer, Tensor) else answer[0]).float()


def ask_split(x: Tensor, sigma: Tensor) -> Generator[Eval, Answer, tuple[Tensor, Tensor]]:
    """Return the x0 estimates of x at sigma, each (b c h w), float32: guided, and under the negative prompt alone."""
    answer = yield Eval(x, sigma, split=True)
    assert isinstance(answer, tuple), "a split question wants the pair (guided, negative)"
    guided, negative = answer
    return guided.float(), negative.float()


class StepNoise(Protocol):
    """The noise of the steps, one generator an image, so that a picture does not depend on its batch."""

    def draw(self) -> Tensor:
        """Return the next standard normal tensor, (b c h w)."""
        ...

    def between(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return the normalised increment of each image's Brownian path between two noise levels, (b c h w)."""
        ...


@dataclass(frozen=True)
class Options:
    """What a request may change about a sampler. Names as in Karras et al. 2022.

    `s_tmax` 0 is no limit; `eta` None: the sampler's own.
    """

    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = float("inf")
    s_noise: float = 1.0

    def eta_or(self, default: float) -> float:
        """Return eta, or the sampler's own where the request leaves it open."""
        return default if self.eta is None else self.eta


@dataclass(frozen=True)
class Plan:
    """What a sampler needs beside x: noise levels, noise, and how signal and noise mix.

    `sigmas`: (n + 1,), float32, descending, the last is where the picture is (0 for nearly all schedules). `alpha`:
    the signal's coefficient at a noise level: x = alpha(sigma) x0 + sigma n. It is 1 for epsilon and v models
    (k-diffusion's convention, x = x0 + sigma n) and 1 - sigma for flow models. `table`: the model's own, for samplers
    that look a timestep up (LCM) or walk to its lowest noise level (DPM fast, adaptive).
    """

    sigmas: Tensor
    noise: StepNoise
    alpha: Callable[[Tensor], Tensor]
    table: NoiseTable | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler and what is known about it. `name` as A1111 1.10 shows it; `sample(x, plan)` is the coroutine.

    `evals_per_step`: 2 for second-order samplers. `over_timesteps`: A1111 steps it over timesteps, and starts it from
    noise of variance 1 + sigma^2. `adaptive`: chooses its steps by looking at x, so a driver gives each image a
    coroutine of its own. `cfg_divisor`: what the guidance scale is divided by. `levels`: (steps, table) -> the sigmas
    of the automatic schedule, for samplers that have their own. `predictions`: those that it has meaning for.
    """

    name: str
    sample: Callable[[Tensor, Plan], Sampling]
    aliases: tuple[str, ...] = ()
    default_schedule: str | None = None
    evals_per_step: int = 1
    discard_next_to_last_sigma: bool = False
    uses_ensd: bool = False
    stochastic: bool = False
    over_timesteps: bool = False
    adaptive: bool = False
    cfg_divisor: float = 1.0
    levels: Callable[[int, NoiseTable], Tensor] | None = None
    predictions: tuple[str, ...] = ("epsilon", "v", "flow")
