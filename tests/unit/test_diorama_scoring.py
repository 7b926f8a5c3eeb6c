"""How pictures are judged: what was found, held against what a caption claims; and the card's table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from disegno.core.request import ControlUnit
from disegno.core.settings import load_settings
from disegno.engine.studio import Studio
from kit.world import blobs

from recipes.diorama.detector import Found  # isort: skip
from recipes.diorama.evaluate import BEGIN, Consistency, Report, Subject, fingerprint, put_into, table
from recipes.diorama.scoring import Scores, Share, in_their_places, score
from recipes.diorama.world.captions import Facts, Mention, Relation
from recipes.diorama.world.labels import CELLS, COLOUR_NAMES, labels_of
from recipes.diorama.world.render import compose
from recipes.diorama.world.vocabulary import nouns

pytestmark = pytest.mark.unit
NUMBER = {noun.name: k for k, noun in enumerate(nouns())}
FACTS = Facts(
    (Mention("car", "a red car", "red", (0,), "ground"), Mention("apple", "three apples", None, (1, 2, 3), "ground")),
    (Relation(0, "left", 1),),
)


def found(name: str, x: float, colour: str = "blue") -> Found:
    return Found(NUMBER[name], 0.9, x, 0.5, colour)


def test_all_that_was_asked_for_scores_all() -> None:
    seen = [found("car", 0.2, "red"), *(found("apple", x) for x in (0.5, 0.7, 0.9))]
    scores = score(Scores(), FACTS, seen)
    assert scores == Scores(Share(2, 2), Share(1, 1), Share(1, 1), Share(1, 1))


def test_what_is_missing_wrong_or_elsewhere_does_not() -> None:
    scores = score(Scores(), FACTS, [found("car", 0.6, "green"), found("apple", 0.5)])
    assert scores == Scores(Share(2, 2), Share(0, 1), Share(0, 1), Share(0, 1))
    scores = score(scores, FACTS, [])
    assert (scores.object, scores.colour, scores.relation) == (Share(2, 4), Share(0, 1), Share(0, 2))


def test_things_are_looked_for_in_their_boxes() -> None:
    scene = compose(blobs(), 11, 0, 128)
    boxes = scene.boxes
    there = [Found(NUMBER[b.label], 0.9, (b.left + b.right) / 256, (b.top + b.bottom) / 256, "blue") for b in boxes]
    assert in_their_places(Share(1, 2), scene, there) == Share(1 + len(boxes), 2 + len(boxes))
    away = [replace(each, x=each.x + 0.9) for each in there]
    other = [replace(each, noun=each.noun + 1) for each in there]
    for wrong in (away, other, []):
        assert in_their_places(Share(), scene, wrong) == Share(0, len(boxes))


def test_labels_are_where_the_things_are() -> None:
    for index in range(20):
        scene = compose(blobs(), 11, index, 128)
        labels = labels_of(scene)
        boxes = scene.boxes
        for row, column in zip(*(labels.noun >= 0).nonzero(), strict=True):
            name = nouns()[labels.noun[row, column]].name
            x, y = (column + 0.5) * 128 / CELLS, (row + 0.5) * 128 / CELLS
            assert any(
                b.label == name and b.left - 8 <= x <= b.right + 8 and b.top - 8 <= y <= b.bottom + 8 for b in boxes
            )
            if labels.colour[row, column] >= 0:
                assert COLOUR_NAMES[labels.colour[row, column]] in scene.caption
        assert (labels.noun >= 0).sum() >= 1


def test_the_card_gets_the_table_once(tmp_path: Path) -> None:
    card = tmp_path / "CARD.md"
    card.write_text("# card\n")
    placed = Share(3, 5), Share(1, 5), Share(4, 5)
    conditions = (
        Consistency("canny", "edge F1", 0.8, 0.4, 0.9, 8, placed),
        Consistency("flat", "SSIM", 0.8, 0.4, 0.9, 8),
    )
    for hits in (1, 2):
        found = Scores(Share(hits, 4)), Scores(Share(4, 4)), Scores(Share(3, 4))
        put_into(card, table(Report(4, (0.5, 0.0, 0.1), conditions, found)))
    text = card.read_text()
    assert text.count(BEGIN) == 1 and "50 % of 4" in text and "25 %" not in text and text.startswith("# card\n")
    assert "| by a detector: a thing that was asked for is there | 50 % of 4 | 100 % of 4 | 75 % of 4 |" in text
    assert "| distance KID-EffLite0 (not FID) | 0.500 | 0.000 | 0.100 |" in text
    assert "| canny | edge F1 | 0.80 | 0.40 | 0.90 | 80 % | 8 |" in text
    assert "| canny | 60 % of 5 | 20 % of 5 | 80 % of 5 | 67 % |" in text and text.count("| flat |") == 1


def test_a_picture_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[str, ...], int, str]] = []

    def draw(_: Subject, prompts: Sequence[str], seed: int, control: ControlUnit | None) -> list[Image.Image]:
        asked.append((tuple(prompts), seed, control.name if control else ""))
        return [Image.new("RGB", (8, 8), (len(asked), k, 0)) for k in range(len(prompts))]

    monkeypatch.setattr(Subject, "_drawn", draw)
    subject = Subject(None, Studio(load_settings()), tmp_path / "drawn")
    canny = ControlUnit(name="canny", image="")
    for _ in range(2):
        both = subject.draw_all(["a car", "a cat"], 3)
        assert [picture[0, 0].tolist() for picture in both] == [[1, 0, 0], [1, 1, 0]]
        assert subject.draw("a cat", 4)[0, 0].tolist() == [1, 1, 0]
        assert subject.draw("a car", 3, canny)[0, 0].tolist() == [2, 0, 0]
        assert replace(subject, few=True).draw("a car", 3)[0, 0].tolist() == [3, 0, 0]
    assert asked == [(("a car", "a cat"), 3, ""), (("a car",), 3, "canny"), (("a car",), 3, "")]


def test_pictures_of_another_model_are_others(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "vae.safetensors").write_bytes(b"a")
    before = fingerprint(tmp_path)
    (tmp_path / "CARD.md").write_text("# its card, with the figures that were found")
    assert fingerprint(tmp_path) == before
    (tmp_path / "vae.safetensors").write_bytes(b"b")
    assert fingerprint(tmp_path) != before
