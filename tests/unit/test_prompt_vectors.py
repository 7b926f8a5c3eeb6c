"""The prompt language against A1111 1.10's own parser: what it gave for these prompts, case by case."""

import json
from pathlib import Path
from typing import Any

import pytest

from disegno.prompts.comments import without_comments
from disegno.prompts.composition import split_parts
from disegno.prompts.emphasis import parse_emphasis
from disegno.prompts.networks import Tag, cut_tags
from disegno.prompts.schedule import schedule, span_at
from disegno.prompts.styles import merge_style

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[1] / "golden" / "vectors"


def _cases(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["cases"]


PROMPTS = _cases("prompts")


def _prompt_cases(key: str) -> Any:
    return pytest.mark.parametrize("case", PROMPTS, ids=[repr(case["input"])[:40] + f" {key}" for case in PROMPTS])


@_prompt_cases("emphasis")
def test_emphasis(case: dict[str, Any]) -> None:
    pieces = [list(piece) for piece in parse_emphasis(case["input"])]
    if "raises" in case["attention"]:  # (a:1.2.3) fails upstream; the text stands here, and the bracket counts
        assert pieces == [["a:1.2.3", 1.1]]
    else:
        assert pieces == case["attention"]["ok"]


@_prompt_cases("schedules")
def test_schedules(case: dict[str, Any]) -> None:
    for asked in case["schedules"]:
        given = schedule(case["input"], asked["steps"], asked["hires_steps"], asked["use_old_scheduling"])
        assert [list(span) for span in given] == asked["schedule"], asked


@_prompt_cases("parts")
def test_parts(case: dict[str, Any]) -> None:
    expected = case["multicond"]
    parts = split_parts(case["input"])
    assert [{"text": part.text, "weight": part.weight} for part in parts] == expected["subprompts"]


def _networks(tags: list[Tag]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for tag in tags:
        found.setdefault(tag.kind, []).append(
            {"items": list(tag.items), "positional": tag.positional, "named": tag.named}
        )
    return found


@_prompt_cases("networks")
def test_networks_of_the_prompts(case: dict[str, Any]) -> None:
    prompt, tags = cut_tags(case["input"])
    assert {"prompt": prompt, "networks": _networks(tags)} == case["extra_networks"]


@pytest.mark.parametrize("case", _cases("extra_networks"), ids=lambda case: case["input"])
def test_networks(case: dict[str, Any]) -> None:
    prompt, tags = cut_tags(case["input"])
    assert (prompt, _networks(tags)) == (case["prompt"], case["networks"])


@pytest.mark.parametrize("case", _cases("comments"), ids=lambda case: case["input"])
def test_comments(case: dict[str, Any]) -> None:
    assert without_comments(case["input"]) == case["expected"]


@pytest.mark.parametrize("case", _cases("styles"), ids=lambda case: case["style"] or "empty")
def test_styles(case: dict[str, Any]) -> None:
    assert merge_style(case["style"], case["prompt"]) == case["merged"]


@pytest.mark.parametrize("case", _cases("schedule_lookup"), ids=lambda case: case["prompt"])
def test_which_text_holds_at_a_call(case: dict[str, Any]) -> None:
    spans = schedule(case["prompt"], case["steps"])
    assert [list(span) for span in spans] == case["schedule"]
    held = [span_at(spans, call) for call in range(case["model_calls"])]
    assert held == case["entry_index_used_per_call"]
    assert [spans[n].text for n in held] == case["text_used_per_call"]
