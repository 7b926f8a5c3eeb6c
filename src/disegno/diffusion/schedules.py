"""Noise levels: a model's table of them, the schedules that pick some (sigma spacing), and where a generation starts.

A schedule is a function of (number of steps, table, spacing); the formulas are those of k-diffusion and of
AUTOMATIC1111 1.10, whose names and labels they keep. On a flow table (sigmas in (0, 1]) the same formulas run over
the table's own sigmas.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from disegno.core.errors import RequestError, UnknownName

FLOW_TIMESTEPS = 1000
MAX_PLANNED = 1_000_000  # steps: all of 1000 done for a thousandth; a share of next to nothing would plan without end


@dataclass(frozen=True)
class NoiseTable:
    """A model's noise levels: `sigmas` (T,), float32, ascending; timestep t is index t.

    Between them, log-linear in sigma. `shift`: of a flow, how far its levels were moved towards noise.
    """

    sigmas: Tensor
    shift: float = 1.0

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> "NoiseTable":
        """Return the table of sigma = sqrt((1 - abar) / abar), (T,)."""
        abar = alphas_cumprod.float()
        return cls(((1 - abar) / abar) ** 0.5)

    @cached_property
    def log_sigmas(self) -> Tensor:
        return self.sigmas.log()

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Return abar = 1 / (sigma^2 + 1), (T,)."""
        return 1 / (self.sigmas**2 + 1)

    @property
    def is_flow(self) -> bool:
        """Return whether the levels are those of the straight path, x = (1 - sigma) x0 + sigma n, and so end at 1."""
        return float(self.sigmas[-1]) <= 1.0

    def net_t(self, sigma: Tensor) -> Tensor:
        """Return what the net is told of each noise level, of its shape: the timestep, or 1000 sigma of a flow."""
        return sigma * FLOW_TIMESTEPS if self.is_flow else self.t_of(sigma)

    def net_sigma(self, t: Tensor) -> Tensor:
        """Return the noise level that the net is told of by each t, of its shape; within the table's levels."""
        return t / FLOW_TIMESTEPS if self.is_flow else self.sigma_of(t)

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def t_of(self, sigma: Tensor) -> Tensor:
        """Return the fractional timestep of each sigma, of its shape. k-diffusion's DiscreteSchedule.sigma_to_t."""
        log_sigma = sigma.log()
        dists = log_sigma.reshape(-1)[None] - self.log_sigmas[:, None]  # T n
        low = dists.ge(0).cumsum(dim=0).argmax(dim=0).clamp(max=len(self.sigmas) - 2)
        a, b = self.log_sigmas[low], self.log_sigmas[low + 1]
        w = ((a - log_sigma.reshape(-1)) / (a - b)).clamp(0, 1)
        return ((1 - w) * low + w * (low + 1)).reshape(sigma.shape)

    def sigma_of(self, t: Tensor) -> Tensor:
        """Return the sigma of each fractional timestep, of its shape."""
        t = t.float()
        low, high, w = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - w) * self.log_sigmas[low] + w * self.log_sigmas[high]).exp()


def scaled_linear_table(beta_start: float = 0.00085, beta_end: float = 0.012, num_timesteps: int = 1000) -> NoiseTable:
    """Return Stable Diffusion's table: beta linear in its square root, cumulated in float64 (Rombach et al. 2022)."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    return NoiseTable.from_alphas_cumprod((1 - betas).cumprod(dim=0).float())


def shifted(level: Tensor, shift: float) -> Tensor:
    """Return a flow's noise level moved towards noise, of its shape. Esser et al. 2024, eq. 23."""
    return shift * level / (1 + (shift - 1) * level)


def flow_table(shift: float, num_timesteps: int = FLOW_TIMESTEPS) -> NoiseTable:
    """Return the table of a flow model with this shift, which was taught at 1/T, 2/T, ... 1."""
    return NoiseTable(shifted(torch.arange(1, num_timesteps + 1) / num_timesteps, shift), shift)


@dataclass(frozen=True)
class Spacing:
    """What a request may change about a schedule. None: the model's own noise levels, and the schedule's own `rho`.

    `beta_alpha`, `beta_beta`: the shape of the Beta schedule. `sdxl`: the Align Your Steps values of SDXL, not of SD
    1.5.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    beta_alpha: float = 0.6
    beta_beta: float = 0.6
    sdxl: bool = False

    def ends(self, table: NoiseTable) -> tuple[float, float]:
        """Return (sigma_min, sigma_max)."""
        return self.sigma_min or float(table.sigma_min), self.sigma_max or float(table.sigma_max)


ScheduleFunction = Callable[[int, NoiseTable, Spacing], Tensor]


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas.float(), torch.zeros(1)])


def _ends_in_t(table: NoiseTable, spacing: Spacing) -> tuple[float, float]:
    t_min, t_max = table.t_of(torch.tensor(spacing.ends(table))).tolist()
    return t_min, t_max


def _evenly(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n sigmas at evenly spaced timesteps between the ends.

    ComfyUI and diffusers parity: of a flow, even between the shifted ends, and then shifted.
    """
    if table.is_flow:
        low, high = spacing.ends(table)
        return shifted(torch.linspace(high, low, n), table.shift)
    low, high = _ends_in_t(table, spacing)
    return table.sigma_of(torch.linspace(high, low, n))


def uniform(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n sigmas at evenly spaced timesteps, both ends of the table included, and 0. k-diffusion's get_sigmas."""
    return _with_zero(table.sigma_of(torch.linspace(len(table.sigmas) - 1, 0, n)))


def karras(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n sigmas evenly spaced in sigma^(1 / rho), and 0. Karras et al. 2022, eq. 5; rho is 7."""
    low, high = spacing.ends(table)
    rho = spacing.rho or 7.0
    ramp = torch.linspace(0, 1, n)
    return _with_zero((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)


def exponential(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n sigmas evenly spaced in log sigma, and 0."""
    low, high = spacing.ends(table)
    return _with_zero(torch.linspace(math.log(high), math.log(low), n).exp())


def polyexponential(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n sigmas spaced by a power of the ramp in log sigma, and 0; rho is 1."""
    low, high = spacing.ends(table)
    ramp = torch.linspace(1, 0, n) ** (spacing.rho or 1.0)
    return _with_zero((ramp * (math.log(high) - math.log(low)) + math.log(low)).exp())


def sgm_uniform(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return the first n of n + 1 evenly spaced timesteps' sigmas, and 0.

    The spacing of Stability's generative-models.
    """
    return _with_zero(_evenly(n + 1, table, spacing)[:-1])


def normal(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n sigmas at evenly spaced timesteps between the ends, and 0."""
    return _with_zero(_evenly(n, table, spacing))


def kl_optimal(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n + 1 sigmas evenly spaced in atan(sigma). Sabour et al. 2024, eq. 11.

    A1111 parity: the last is sigma_min, not 0, so a trace of noise stays in the picture.
    """
    low, high = spacing.ends(table)
    ramp = torch.arange(n + 1) / n
    return torch.tan(ramp * math.atan(low) + (1 - ramp) * math.atan(high)).float()


def simple(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return every (T / n)-th sigma of the table, from its top, and 0; of more than T, what lies in between too."""
    stride = len(table.sigmas) / n
    if stride < 1:  # a hires pass that draws over a fiftieth plans fifty times its steps: no level may come twice
        return _with_zero(table.sigma_of((len(table.sigmas) - 1) * (1 - torch.arange(n) / n)))
    return _with_zero(table.sigmas[[-(1 + int(i * stride)) for i in range(n)]])


def ddim(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return the sigmas at timesteps 1, 1 + T // n, ... downwards, and 0. Their number is n only where n divides T."""
    stride = max(len(table.sigmas) // n, 1)
    return _with_zero(table.sigmas[1::stride].flip(0))


def beta(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return n sigmas at the quantiles of a Beta distribution, and 0. Lee et al. 2024.

    A1111 parity: the quantiles scale sigma itself; in the paper they scale the timestep, as here of a flow (ComfyUI).
    """
    from scipy.special import betaincinv  # 0.16 s to open, for one schedule of fifteen

    if table.is_flow:
        quantiles = betaincinv(spacing.beta_alpha, spacing.beta_beta, 1 - np.linspace(0, 1, n, endpoint=False))
        places = np.rint(quantiles * (len(table.sigmas) - 1)).astype(np.int64)
        return _with_zero(table.sigmas[torch.from_numpy(np.unique(places)[::-1].copy())])
    low, high = spacing.ends(table)
    quantiles = betaincinv(spacing.beta_alpha, spacing.beta_beta, 1 - np.linspace(0, 1, n))
    return _with_zero(torch.from_numpy(low + quantiles * (high - low)))


def turbo(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
    """Return the sigmas at the last timestep of n equal parts of the table, and 0.

    What distilled models were taught on. For n = 1 that is the table's top alone; for n = 4 and T = 1000, timesteps
    999, 749, 499, 249 (Sauer et al. 2023).
    """
    size = len(table.sigmas)
    if n > size:
        return simple(n, table, spacing)
    t = (torch.arange(n, 0, -1) * (size / n) - 1).round().long().clamp(0, size - 1)
    return _with_zero(table.sigmas[t])


# Optimised noise levels of Sabour et al. 2024, SD 1.5 and SDXL (research.nvidia.com/labs/toronto-ai/AlignYourSteps);
# the finer tables are the 32 values that Forge and ComfyUI ship.
AYS_11 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_11_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
# fmt: off
AYS_32 = (
    14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609,
    3.13490466, 2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953,
    1.314849, 1.16642497, 1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202,
    0.4529096, 0.37491455, 0.27461819, 0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015,
)
AYS_32_SDXL = (
    14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457,
    2.74396527, 2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443,
    0.80290886, 0.69660121, 0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517,
    0.26518925, 0.22326461, 0.17653877, 0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015,
)
# fmt: on


def _align_your_steps(sd15: tuple[float, ...], sdxl: tuple[float, ...]) -> ScheduleFunction:
    """Return the schedule that resamples optimised noise levels, linearly in log sigma, to n, and 0.

    The values belong to x = x0 + sigma n. On a flow table they are taken at the same signal-to-noise ratio, sigma /
    (1 + sigma), but for the first, which is the table's own: a picture starts from pure noise.
    """

    def sigmas(n: int, table: NoiseTable, spacing: Spacing) -> Tensor:
        values = np.array(sdxl if spacing.sdxl else sd15)
        places = np.linspace(0, 1, n)  # A1111 parity: a single step is taken at the low end
        picked = np.exp(np.interp(places, np.linspace(0, 1, len(values)), np.log(values[::-1])))[::-1].copy()
        if table.is_flow:
            picked = picked / (1 + picked)
            picked[0] = float(table.sigma_max)
        return _with_zero(torch.from_numpy(picked))

    return sigmas


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule and its names, as A1111 1.10 shows them: `name` in code, `label` for people."""

    name: str
    label: str
    sigmas: ScheduleFunction
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names that select it."""
        return (self.label, self.name, *self.aliases)


AUTOMATIC = ScheduleSpec("automatic", "Automatic", uniform)

_SPECS = (
    AUTOMATIC,
    ScheduleSpec("uniform", "Uniform", uniform),
    ScheduleSpec("karras", "Karras", karras),
    ScheduleSpec("exponential", "Exponential", exponential),
    ScheduleSpec("polyexponential", "Polyexponential", polyexponential),
    ScheduleSpec("sgm_uniform", "SGM Uniform", sgm_uniform, ("SGMUniform",)),
    ScheduleSpec("kl_optimal", "KL Optimal", kl_optimal),
    ScheduleSpec("align_your_steps", "Align Your Steps", _align_your_steps(AYS_11, AYS_11_SDXL)),
    ScheduleSpec("simple", "Simple", simple),
    ScheduleSpec("normal", "Normal", normal),
    ScheduleSpec("ddim", "DDIM", ddim),
    ScheduleSpec("beta", "Beta", beta),
    ScheduleSpec("turbo", "Turbo", turbo),
    ScheduleSpec("align_your_steps_11", "Align Your Steps 11", _align_your_steps(AYS_11, AYS_11_SDXL)),
    ScheduleSpec("align_your_steps_32", "Align Your Steps 32", _align_your_steps(AYS_32, AYS_32_SDXL)),
)

SCHEDULES: dict[str, ScheduleSpec] = {spec.name: spec for spec in _SPECS}
_BY_NAME = {name.lower(): spec for spec in _SPECS for name in spec.names}


def find_schedule(name: str | None) -> ScheduleSpec:
    """Return the schedule of that name, label or alias, whatever its case; None or "" is Automatic.

    Raises UnknownName.
    """
    spec = _BY_NAME.get(name.strip().lower()) if name else AUTOMATIC
    if spec is None:
        raise UnknownName.of("schedule", str(name), SCHEDULES)
    return spec


class Spaced(Protocol):
    """What a schedule must know about a sampler; `SamplerSpec` is one."""

    @property
    def default_schedule(self) -> str | None: ...
    @property
    def discard_next_to_last_sigma(self) -> bool: ...
    @property
    def levels(self) -> Callable[[int, NoiseTable], Tensor] | None: ...


def plan_sigmas(
    sampler: Spaced, schedule: str | None, steps: int, table: NoiseTable, spacing: Spacing | None = None
) -> Tensor:
    """Return a generation's noise levels, (n + 1,), float32, descending; n is `steps` for nearly all schedules.

    The automatic schedule is the sampler's own: its levels, else its default schedule, else Uniform; of a flow Normal,
    which flow models were published with (a sampler's default is made for other noise levels). Raises RequestError.
    """
    if steps < 1:
        raise RequestError(f"The number of steps is {steps}; it must be at least 1.")
    spec, spacing = find_schedule(schedule), spacing or Spacing()
    if spec is AUTOMATIC and sampler.levels is not None:
        return sampler.levels(steps, table)
    if spec is AUTOMATIC and table.is_flow:
        spec = SCHEDULES["normal"]
    if spec is AUTOMATIC:
        spec = find_schedule(sampler.default_schedule)
    if not sampler.discard_next_to_last_sigma:
        return spec.sigmas(steps, table, spacing)
    sigmas = spec.sigmas(steps + 1, table, spacing)
    return torch.cat([sigmas[:-2], sigmas[-1:]])


def timesteps(steps: int, num_timesteps: int = 1000) -> Tensor:
    """Return the timesteps of a sampler over timesteps, ascending, int64. A1111's CompVisSampler.get_timesteps.

    They are 1, 1 + stride, ... with stride = num_timesteps // steps, so there is one more than `steps` where it does
    not divide.
    """
    stride = max(num_timesteps // steps, 1)
    return (torch.arange(0, num_timesteps, stride) + 1).clamp(0, num_timesteps - 1)


def timestep_levels(steps: int, table: NoiseTable) -> Tensor:
    """Return the sigmas at `timesteps`, descending, (n,), float32, without a final 0.

    A single step starts at the table's top.
    """
    t = timesteps(steps, len(table.sigmas))
    top = torch.tensor([len(table.sigmas) - 1])
    return table.sigmas[t if len(t) > 1 else torch.cat([t, top])].flip(0).float()


@dataclass(frozen=True)
class Start:
    """Where image-to-image begins: `steps` are planned, and the last `num_steps` of them are done."""

    steps: int
    num_steps: int

    @property
    def first(self) -> int:
        """Return the index of the first noise level that is used."""
        return self.steps - self.num_steps

    def cut(self, sigmas: Tensor) -> Tensor:
        """Return the noise levels that are left of a plan."""
        return sigmas[self.first :]


def start_step(steps: int, strength: float, exact_steps: bool = False) -> Start:
    """Return where image-to-image begins at this denoising strength. A1111's setup_img2img_steps.

    `exact_steps`: plan more steps, so that `steps` of them are really done (A1111's img2img_fix_steps, and its hires
    pass); otherwise a share of the planned steps is skipped. Strength 0 with exact steps plans none: the picture
    stays as it is.
    """
    strength = min(strength, 0.999)
    if not exact_steps:
        return Start(steps, int(strength * steps) + 1)
    planned = int(min(steps / strength, MAX_PLANNED)) if strength > 0 else 0
    return Start(planned, steps)
