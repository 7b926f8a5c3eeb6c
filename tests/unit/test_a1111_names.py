"""Samplers and schedulers by A1111's names: its lists, and the same meaning as in the engine."""

import json
from pathlib import Path
from typing import Any

import pytest

from disegno.core.errors import UnknownName
from disegno.diffusion.schedules import SCHEDULES
from disegno.samplers.catalogue import SAMPLERS, resolve_names
from disegno.serving.a1111.names import Names, Sampler, Schedule, sampler_rows, scheduler_rows

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent.parent / "golden"
LISTS = json.loads((GOLDEN / "a1111" / "sampler_scheduler_lists.json").read_text("utf-8"))
CASES = json.loads((GOLDEN / "vectors" / "sampler_scheduler_names.json").read_text("utf-8"))["cases"]
NAMES = Names(
    tuple(Sampler(spec.name, spec.aliases, spec.default_schedule) for spec in SAMPLERS),
    tuple(Schedule(spec.name, spec.label, spec.aliases) for spec in SCHEDULES.values()),
)


def test_the_lists_are_a1111s() -> None:
    theirs = [{name: row[name] for name in ("name", "aliases", "options")} for row in LISTS["samplers"]]
    assert sampler_rows(NAMES.samplers) == theirs
    known = {row["name"] for row in LISTS["schedulers"]}
    assert [row for row in scheduler_rows(NAMES.schedules) if row["name"] in known] == LISTS["schedulers"]


def outcome(resolve: Any, sampler: str, schedule: str | None) -> Any:
    try:
        return resolve(sampler, schedule)
    except UnknownName:
        return UnknownName


def test_a_name_means_what_it_means_to_the_engine() -> None:
    asked = {(case["sampler"] or "Euler", case["scheduler"]) for case in CASES} | {("euler a karras", None)}
    for sampler, schedule in asked:
        assert outcome(NAMES.resolve, sampler, schedule) == outcome(resolve_names, sampler, schedule), (
            sampler,
            schedule,
        )
    assert len(asked) > 100
