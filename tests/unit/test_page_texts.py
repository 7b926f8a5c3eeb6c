"""The page's texts: every English one has a Chinese one, with the same places in it."""

import json
import re
from pathlib import Path

import pytest

import disegno.ui
from disegno.annotators.boxes import COLOURS
from disegno.training.data.problems import KINDS

pytestmark = pytest.mark.unit

SCRIPTS = Path(disegno.ui.__file__).parent / "static/js"
_TEXT = r'"((?:[^"\\]|\\.)*)"'
TABLES = {  # texts that are said through a table: t(TABLE[x])
    "board.js": (r'\["\w+", ("[A-Z]\w+"), "\w"\]',),
    "coco.js": (r'\[("[a-z ]+"), "#',),
    "dataset.js": (r"const COSTS = \{(.*?)\};",),
    "gallery.js": (r"const MOVES = \[(.*?)\];",),
    "inks.js": (r'\[("[a-z ]+"), "#',),
    "library.js": (r"const KINDS = \{(.*?)\};",),
    "main.js": (r"const TABS = \[(.*?)\];", r"const THEMES = \[(.*?)\];"),
    "pictures.js": (
        r"const WAYS = \[(.*?)\];",
        r"const HELP = \{(.*?)\};",
        r"const SIDES = \[(.*?)\];",
        r"t\(\{(.*?)\}\[",
    ),
    "prompt.js": (r"const SYNTAX = \[(.*?)\];",),
    "teach.js": (r"const RECIPES = \[(.*?)\];", r"const VERDICTS = \{(.*?)\};"),
    "sheet.js": (r"const WAYS = \[(.*?)\];", r"const AXES = \[(.*?)\];", r'\["[\w.]*", ("[A-Z][^"]*"), "'),
    "steps.js": (r'\[("[A-Z][a-z ]+"), "',),
    "send.js": (r"const PLACES = \[(.*?)\];",),
}


def _is_text(text: str) -> bool:
    """Whether a string of a table is said, and not a name, an icon or a piece of code."""
    return " " in text.strip() or text[:1].isupper()


def _said() -> set[str]:
    found: set[str] = set()
    for script in SCRIPTS.glob("*.js"):
        code = script.read_text("utf-8")
        found |= set(re.findall(rf"\bt\({_TEXT}", code))
        found |= {text for pair in re.findall(rf"\bt\([^()\"]*\? {_TEXT} : {_TEXT}\)", code) for text in pair}
        for pattern in TABLES.get(script.name, ()):
            parts = re.findall(pattern, code, re.DOTALL)
            assert parts, f"{script.name} has no {pattern} any more"
            strings = [text for part in parts for text in re.findall(_TEXT, part)]
            found |= (
                set(strings) if script.name in ("coco.js", "inks.js") else {text for text in strings if _is_text(text)}
            )
    codes = set(re.findall(rf"\[{_TEXT}, {_TEXT}\]", (SCRIPTS / "prompt.js").read_text("utf-8")))
    told = {text for kind in KINDS.values() for text in (kind.title, kind.advice)}  # by the server's doctor
    return found - {code for code, _ in codes} | told


def _table() -> dict[str, str]:
    rows = re.findall(rf"^  {_TEXT}: {_TEXT},$", (SCRIPTS / "zh.js").read_text("utf-8"), re.MULTILINE)
    return {json.loads(f'"{english}"'): json.loads(f'"{chinese}"') for english, chinese in rows}


def test_every_text_is_there_in_chinese() -> None:
    said = {json.loads(f'"{text}"') for text in _said()}
    assert len(said) > 150
    assert said - _table().keys() == set()


def test_the_table_has_nothing_that_is_not_said() -> None:
    assert _table().keys() - {json.loads(f'"{text}"') for text in _said()} == set()


def test_what_is_filled_in_is_the_same() -> None:
    for english, chinese in _table().items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), english
        assert re.search("[\u4e00-\u9fff]", chinese) or english in ("LoRAs", "VAE"), chinese


def test_the_boxes_colours_are_the_annotators() -> None:
    said = re.findall(r'\["([a-z ]+)", "#(\w{6})"\]', (SCRIPTS / "coco.js").read_text("utf-8"))
    assert {name: tuple(bytes.fromhex(colour)) for name, colour in said} == COLOURS


def test_the_classes_colours_are_the_built_in_models() -> None:
    about = json.loads((SCRIPTS.parents[2] / "data/diorama/model.json").read_text("utf-8"))
    said = re.findall(r'\["([a-z ]+)", "#(\w{6})"\]', (SCRIPTS / "inks.js").read_text("utf-8"))
    colours = {name: list(bytes.fromhex(colour)) for name, colour in said}
    assert colours == about["segmentation_colours"]
