"""Samplers by name: AUTOMATIC1111's rule where it is sane, an error that says what is known where it is not."""

import json
from pathlib import Path

import pytest

from disegno.core.errors import UnknownName
from disegno.diffusion.schedules import find_schedule
from disegno.samplers.base import SamplerSpec
from disegno.samplers.catalogue import SAMPLERS, find_sampler, resolve_names

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parent.parent / "golden" / "vectors"
NAMES = [
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler"),
    *("LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC"),
    "LCM",
]
# what A1111 does not know and takes for its first sampler; we know these, or say that we do not
KNOWN_HERE = {
    "euler": "Euler",
    "Euler A": "Euler a",
    "k_euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "Euler SGM Uniform": "Euler",
    "DPM++ 2M Turbo": "DPM++ 2M",
}
KNOWN_NOWHERE = ("unknown", "Karras", "DPM++ 2M Karras Karras")
UNKNOWN_SCHEDULES = ("nonsense", "Use same scheduler")


def cases() -> list[dict]:
    return json.loads((VECTORS / "sampler_scheduler_names.json").read_text("utf-8"))["cases"]


def test_the_catalogue_is_a1111s() -> None:
    assert [spec.name for spec in SAMPLERS] == NAMES


def test_names_resolve_as_in_a1111() -> None:
    num_same = 0
    for case in cases():
        given, schedule = case["sampler"], case["scheduler"]
        if given in KNOWN_HERE or given in KNOWN_NOWHERE or schedule in (*UNKNOWN_SCHEDULES, "SGMUniform"):
            continue
        assert list(resolve_names(given, schedule, case["convert_automatic"])) == case["result"], case
        num_same += 1
    assert num_same > 400


def test_names_that_a1111_loses() -> None:
    for case in cases():
        given = case["sampler"]
        if given in KNOWN_NOWHERE:
            with pytest.raises(UnknownName):
                resolve_names(given, None)
        elif given in KNOWN_HERE:
            assert resolve_names(given, None)[0] == KNOWN_HERE[given]
    assert resolve_names("Euler SGM Uniform", "Karras") == ("Euler", "SGM Uniform")
    assert resolve_names("Euler", "SGMUniform") == ("Euler", "SGM Uniform")


@pytest.mark.parametrize("schedule", UNKNOWN_SCHEDULES)
def test_an_unknown_schedule_is_said(schedule: str) -> None:
    with pytest.raises(UnknownName, match="There is no schedule named"):
        resolve_names("Euler", schedule)
    assert resolve_names("Euler Karras", schedule) == ("Euler", "Karras")


@pytest.mark.parametrize("spec", SAMPLERS, ids=lambda spec: spec.name)
def test_every_sampler_is_found_by_all_its_names(spec: SamplerSpec) -> None:
    for name in (spec.name, *spec.aliases):
        assert find_sampler(name) is spec
        assert find_sampler(name.upper()) is spec
        assert find_sampler(f" {name} Karras ") is spec
    if spec.default_schedule:
        assert find_schedule(spec.default_schedule)


def test_an_unknown_sampler_is_said_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no sampler named 'DPM\+\+ 2N'.*DPM\+\+ 2M"):
        find_sampler("DPM++ 2N")
