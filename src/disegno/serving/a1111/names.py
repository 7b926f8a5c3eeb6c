"""Samplers and schedulers as A1111 names them: its lists, and what a name means, aliases and any case included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disegno.core.errors import UnknownName
from disegno.serving.a1111.coerce import Json

AUTOMATIC = "Automatic"

_KARRAS: Mapping[str, Json] = {"scheduler": "karras"}
_EXPONENTIAL: Mapping[str, Json] = {"scheduler": "exponential"}
_BROWNIAN: Mapping[str, Json] = {"brownian_noise": True}
_ENSD: Mapping[str, Json] = {"uses_ensd": True}
_SECOND: Mapping[str, Json] = {"second_order": True}
_DISCARD: Mapping[str, Json] = {"discard_next_to_last_sigma": True}
OPTIONS: Mapping[str, Mapping[str, Json]] = {
    "DPM++ 2M": _KARRAS,
    "DPM++ SDE": {**_KARRAS, **_SECOND, **_BROWNIAN},
    "DPM++ 2M SDE": {**_EXPONENTIAL, **_BROWNIAN},
    "DPM++ 2M SDE Heun": {**_EXPONENTIAL, **_BROWNIAN, "solver_type": "heun"},
    "DPM++ 2S a": {**_KARRAS, **_ENSD, **_SECOND},
    "DPM++ 3M SDE": {**_EXPONENTIAL, **_DISCARD, **_BROWNIAN},
    "Euler a": _ENSD,
    "Heun": _SECOND,
    "DPM2": {**_KARRAS, **_DISCARD, **_SECOND},
    "DPM2 a": {**_KARRAS, **_DISCARD, **_ENSD, **_SECOND},
    "DPM fast": _ENSD,
    "DPM adaptive": _ENSD,
    "Restart": {**_KARRAS, **_SECOND},
}
"""What GET samplers says of each; a sampler that is not here has no options."""

_RHO: Mapping[str, float] = {"karras": 7.0, "polyexponential": 1.0}
_INNER = frozenset({"uniform", "sgm_uniform", "simple", "normal", "ddim", "beta"})


@dataclass(frozen=True)
class Sampler:
    """A sampler's names, and the schedule that it is made for."""

    name: str
    aliases: tuple[str, ...] = ()
    default_schedule: str | None = None


@dataclass(frozen=True)
class Schedule:
    """A schedule's names: in code, for people, and others."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names that select it."""
        return (self.label, self.name, *self.aliases)


@dataclass(frozen=True)
class Names:
    """The samplers and schedules that there are."""

    samplers: tuple[Sampler, ...]
    schedules: tuple[Schedule, ...]

    def resolve(self, sampler: str, schedule: str | None) -> tuple[str, str]:
        """Return (sampler's name, schedule's label) of what a client wrote. Raises UnknownName.

        A schedule at the end of the sampler's name beats `schedule`; the sampler's own schedule is called Automatic.
        """
        given = sampler.rstrip()
        found, ending = self._sampler(given), None
        if found is None:
            stem, ending = self._split(given)
            found = self._sampler(stem) if stem.strip() else self.samplers[0]
        if found is None:
            raise UnknownName.of("sampler", given[:100], [known.name for known in self.samplers])
        chosen = ending or self._schedule(schedule)
        return found.name, AUTOMATIC if chosen.name == found.default_schedule else chosen.label

    def _sampler(self, name: str) -> Sampler | None:
        wanted = name.strip().lower()
        named = (known for known in self.samplers if known.name.lower() == wanted)
        aliases = ((known, alias.lower()) for known in self.samplers for alias in known.aliases)
        aliased = (known for known, alias in aliases if wanted in (alias, alias.removeprefix("k_")))
        return next(named, None) or next(aliased, None)

    def _split(self, name: str) -> tuple[str, Schedule | None]:
        """Return a sampler's name without the schedule that it may end with: the longest that fits."""
        endings = sorted(((e, known) for known in self.schedules for e in known.names), key=lambda pair: -len(pair[0]))
        for ending, known in endings:
            if name.lower().endswith(" " + ending.lower()):
                return name[: -len(ending) - 1].rstrip(), known
        return name, None

    def _schedule(self, name: str | None) -> Schedule:
        wanted = (name or AUTOMATIC).strip().lower()
        for known in self.schedules:
            if wanted in (n.lower() for n in known.names):
                return known
        raise UnknownName.of("schedule", str(name)[:100], [known.label for known in self.schedules])


def sampler_rows(samplers: Sequence[Sampler]) -> list[dict[str, Json]]:
    """Return the answer of GET samplers."""
    return [
        {"name": known.name, "aliases": list(known.aliases), "options": dict(OPTIONS.get(known.name, {}))}
        for known in samplers
    ]


def scheduler_rows(schedules: Sequence[Schedule]) -> list[dict[str, Json]]:
    """Return the answer of GET schedulers; a rho of -1 is none."""
    return [
        {
            "name": known.name,
            "label": known.label,
            "aliases": list(known.aliases) or None,
            "default_rho": _RHO.get(known.name, -1.0),
            "need_inner_model": known.name in _INNER,
        }
        for known in schedules
    ]
