"""The samplers by name.

This package's, in AUTOMATIC1111 1.10's order and under its names, then those of other packages. A third-party package
adds one by the entry point group `disegno.samplers`; the entry point names a SamplerSpec, or a module whose `SAMPLER`
is one. Other packages are imported only when samplers are listed, or when a name is not one of ours.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from disegno.core.errors import RequestError, UnknownName
from disegno.diffusion.schedules import AUTOMATIC, SCHEDULES, ScheduleSpec, find_schedule, timestep_levels
from disegno.samplers.base import SamplerSpec
from disegno.samplers.ddim import ddim, ddim_cfgpp
from disegno.samplers.dpm2 import dpm2, dpm2_ancestral
from disegno.samplers.dpm_solver import dpm_adaptive, dpm_fast
from disegno.samplers.dpmpp import dpmpp_2m, dpmpp_2s_ancestral
from disegno.samplers.dpmpp_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_sde
from disegno.samplers.euler import euler, euler_ancestral
from disegno.samplers.heun import heun
from disegno.samplers.lcm import lcm, lcm_levels
from disegno.samplers.lms import lms
from disegno.samplers.plms import plms
from disegno.samplers.restart import restart
from disegno.samplers.unipc import even_levels, unipc

GROUP = "disegno.samplers"

SAMPLERS: tuple[SamplerSpec, ...] = (
    SamplerSpec("DPM++ 2M", dpmpp_2m, ("k_dpmpp_2m",), "karras"),
    SamplerSpec("DPM++ SDE", dpmpp_sde, ("k_dpmpp_sde",), "karras", 2, stochastic=True),
    SamplerSpec("DPM++ 2M SDE", dpmpp_2m_sde, ("k_dpmpp_2m_sde",), "exponential", stochastic=True),
    SamplerSpec("DPM++ 2M SDE Heun", dpmpp_2m_sde_heun, ("k_dpmpp_2m_sde_heun",), "exponential", stochastic=True),
    SamplerSpec("DPM++ 2S a", dpmpp_2s_ancestral, ("k_dpmpp_2s_a",), "karras", 2, uses_ensd=True, stochastic=True),
    SamplerSpec("DPM++ 3M SDE", dpmpp_3m_sde, ("k_dpmpp_3m_sde",), "exponential", 1, True, stochastic=True),
    SamplerSpec("Euler a", euler_ancestral, ("k_euler_a", "k_euler_ancestral"), uses_ensd=True, stochastic=True),
    SamplerSpec("Euler", euler, ("k_euler",)),
    SamplerSpec("LMS", lms, ("k_lms",)),
    SamplerSpec("Heun", heun, ("k_heun",), evals_per_step=2),
    SamplerSpec("DPM2", dpm2, ("k_dpm_2",), "karras", 2, True),
    SamplerSpec("DPM2 a", dpm2_ancestral, ("k_dpm_2_a",), "karras", 2, True, uses_ensd=True, stochastic=True),
    SamplerSpec("DPM fast", dpm_fast, ("k_dpm_fast",), uses_ensd=True, stochastic=True),
    SamplerSpec("DPM adaptive", dpm_adaptive, ("k_dpm_ad",), uses_ensd=True, stochastic=True, adaptive=True),
    SamplerSpec("Restart", restart, ("restart",), "karras", 2, stochastic=True),
    SamplerSpec("DDIM", ddim, ("ddim",), over_timesteps=True, levels=timestep_levels),
    SamplerSpec(
        "DDIM CFG++", ddim_cfgpp, ("ddim_cfgpp",), over_timesteps=True, cfg_divisor=12.5, levels=timestep_levels
    ),
    SamplerSpec("PLMS", plms, ("plms",), over_timesteps=True, levels=timestep_levels),
    SamplerSpec("UniPC", unipc, ("unipc",), over_timesteps=True, levels=even_levels),
    SamplerSpec("LCM", lcm, ("k_lcm",), stochastic=True, levels=lcm_levels),
)


def _open(point: EntryPoint) -> SamplerSpec:
    """Return the sampler that an entry point names. Raises RequestError when it names none."""
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise RequestError(
            f"The sampler {point.name!r} ({point.value}) could not be loaded: {error}. Mend or uninstall its package."
        ) from error
    spec = getattr(found, "SAMPLER", found)
    if not isinstance(spec, SamplerSpec):
        raise RequestError(
            f"The entry point {point.name!r} of {GROUP} names {point.value}. "
            "It must name a SamplerSpec, or a module whose SAMPLER is one."
        )
    return spec


@cache
def all_samplers() -> tuple[SamplerSpec, ...]:
    """Return this package's samplers, then those of others by name. Raises RequestError for a broken package."""
    own = {name.lower() for spec in SAMPLERS for name in (spec.name, *spec.aliases)}
    others = [_open(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]
    return SAMPLERS + tuple(spec for spec in others if spec.name.lower() not in own)


def _index(specs: tuple[SamplerSpec, ...]) -> dict[str, SamplerSpec]:
    by_alias = {alias.lower(): spec for spec in specs for alias in spec.aliases}
    by_short = {alias.lower().removeprefix("k_"): spec for spec in specs for alias in spec.aliases}
    return by_short | by_alias | {spec.name.lower(): spec for spec in specs}


def _lookup(name: str) -> SamplerSpec | None:
    return _index(SAMPLERS).get(name.lower()) or _index(all_samplers()).get(name.lower())


def _split_name(name: str) -> tuple[str, ScheduleSpec | None]:
    """Return a sampler's name without the schedule that it may end with, and that schedule: the longest that fits."""
    endings = [(ending, spec) for spec in SCHEDULES.values() for ending in spec.names]
    for ending, spec in sorted(endings, key=lambda pair: -len(pair[0])):
        if name.lower().endswith(" " + ending.lower()):
            return name[: -len(ending) - 1], spec
    return name, None


def _known(spec: SamplerSpec | None, given: str) -> SamplerSpec:
    """Return the sampler, or raise UnknownName where there is none."""
    if spec is None:
        raise UnknownName.of("sampler", given, [known.name for known in all_samplers()])
    return spec


def find_sampler(name: str) -> SamplerSpec:
    """Return the sampler of that name or alias, whatever its case. Raises UnknownName.

    A schedule may follow the name, as in "DPM++ 2M Karras".
    """
    given = name.strip()
    return _known(_lookup(given) or _lookup(_split_name(given)[0]), given)


def resolve_names(sampler: str | None, schedule: str | None, convert_automatic: bool = True) -> tuple[str, str]:
    """Return (sampler's name, schedule's label) as A1111's get_sampler_and_scheduler does.

    None or "" is DPM++ 2M, and Automatic. A schedule at the end of the sampler's name beats `schedule`.
    `convert_automatic`: the sampler's default schedule is called Automatic. Where A1111 quietly takes its first sampler
    or Automatic for a name it does not know, this raises UnknownName; aliases and any case are known. `SGM Uniform` at
    the end of a name is read whole, where A1111 reads `Uniform` and loses the sampler.
    """
    given = (sampler or "").rstrip()
    direct = _lookup(given)
    stem, ending = (given, None) if direct else _split_name(given)
    spec = direct or (_known(_lookup(stem), given) if stem else SAMPLERS[0])
    found = ending or find_schedule(schedule)
    if convert_automatic and found.name == spec.default_schedule:
        found = AUTOMATIC
    return spec.name, found.label
