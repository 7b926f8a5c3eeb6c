"""A request for each picture of a folder."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from disegno.cli.main import main
from disegno.core.each import pictures_in, turns_of
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit, InitImage, Region, Request

pytestmark = pytest.mark.unit


def _pictures(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for n, name in enumerate(names):
        Image.new("RGB", (64 + 8 * n, 64), (40 * n, 80, 120)).save(folder / name)
    return folder


def test_a_request_that_names_no_folder_is_one_request(tmp_path: Path) -> None:
    photos = _pictures(tmp_path / "photos", "a.png")
    assert turns_of(Request(prompt="a car")) is None
    assert turns_of(Request(init=InitImage(image=str(photos / "a.png")))) is None
    assert turns_of(Request(init=InitImage(image="data:image/png;base64,AAAA"))) is None


def test_folders_go_by_the_names_of_their_pictures(tmp_path: Path) -> None:
    photos = _pictures(tmp_path / "photos", "b.jpg", "A.png", "c.webp", ".hidden.png")
    (photos / "notes.txt").write_text("a note")
    (photos / "more.png").mkdir()
    masks = _pictures(tmp_path / "masks", "a.png", "B.png", "c.png", "unused.png")
    one = str(photos / "A.png")
    request = Request(
        init=InitImage(image=str(photos), mask=str(masks)),
        controls=(
            ControlUnit(name="canny", image=one),
            ControlUnit(name="depth", image=str(photos), region=str(masks)),
        ),
        regions=(Region(prompt="a tree", w=0.5), Region(prompt="a car", mask=str(masks))),
        depth=str(masks),
    )
    turns = turns_of(request)
    assert turns is not None and [turn.name for turn in turns] == ["A", "b", "c"]
    second = turns[1].request
    assert second.init is not None
    assert (second.init.image, second.init.mask) == (str(photos / "b.jpg"), str(masks / "B.png"))
    assert [unit.image for unit in second.controls] == [one, str(photos / "b.jpg")]
    assert (second.controls[1].region, second.depth) == (str(masks / "B.png"), str(masks / "B.png"))
    assert [region.mask for region in second.regions] == [None, str(masks / "B.png")]


@pytest.mark.parametrize(
    ("names", "others", "said"),
    [
        ((), ("a.png",), "There is no picture in"),
        (("a.png", "b.png", "c.png", "d.png", "e.png"), ("a.png",), "has no picture for 4 of 5: b, c, d, ..."),
        (("a.png", "A.jpg"), ("a.png",), "have one name"),
    ],
)
def test_folders_that_do_not_go_together_are_refused(
    names: tuple[str, ...], others: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    photos, masks = _pictures(tmp_path / "photos", *names), _pictures(tmp_path / "masks", *others)
    with pytest.raises(RequestError, match=said):
        turns_of(Request(init=InitImage(image=str(photos), mask=str(masks))))


def test_every_picture_is_drawn_under_its_name_and_the_broken_one_is_named(tmp_path: Path) -> None:
    photos = _pictures(tmp_path / "photos", "one.png", "two.jpg")
    (photos / "broken.png").write_bytes(b"no picture")
    flags = ["generate", "a red car", "--from", str(photos), "--steps", "1", "--size", "64x64", "--seed", "3", "--json"]
    done = CliRunner().invoke(main, [*flags, "-o", str(tmp_path / "out")])
    assert done.exit_code == 1 and "1 of 3 pictures could not be read. broken: " in done.stderr
    report = json.loads(done.stdout)
    assert [Path(path).name for path in report["images"]] == ["one.png", "two.png"] and report["seeds"] == [3, 3]
    assert list(report["failed"]) == ["broken"]
    with Image.open(tmp_path / "out/one.png") as one, Image.open(tmp_path / "out/two.png") as two:
        assert one.size == (64, 64) and one.tobytes() != two.tobytes()
    again = CliRunner().invoke(main, [*flags, "-o", str(tmp_path / "out")])  # nothing is drawn over
    assert [Path(path).name for path in json.loads(again.stdout)["images"]] == ["one-2.png", "two-2.png"]


@pytest.mark.parametrize("flags", [["-o", "a.png"], ["--x", "cfg=1,2"], ["--loops", "2"]])
def test_what_does_not_go_with_a_folder_is_refused_before_anything_is_drawn(flags: list[str], tmp_path: Path) -> None:
    photos = _pictures(tmp_path / "photos", "one.png")
    done = CliRunner().invoke(main, ["generate", "a", "--from", str(photos), *flags])
    assert done.exit_code == 2 and "folder" in done.stderr.lower()


def test_a_folder_is_annotated(tmp_path: Path) -> None:
    photos = _pictures(tmp_path / "photos", "one.png", "two.jpg")
    done = CliRunner().invoke(main, ["annotate", "invert", str(photos)])
    assert done.exit_code == 0, done.output
    drawings = pictures_in(tmp_path / "photos.invert")
    assert list(drawings) == ["one", "two"] and str(drawings["one"]) in done.stdout
    with Image.open(drawings["one"]) as one:
        assert one.getpixel((0, 0)) == (255, 175, 135)
    for out in (photos, tmp_path / "one.png"):
        done = CliRunner().invoke(main, ["annotate", "invert", str(photos), "-o", str(out)])
        assert done.exit_code == 2 and "a folder of their own" in done.stderr
