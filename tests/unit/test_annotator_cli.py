"""`disegno annotate`, as a person uses it."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import Picture, annotate_at, make_params
from disegno.cli.annotate import command
from disegno.cli.main import main
from disegno.core.errors import BadImage

pytestmark = pytest.mark.unit


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def pixels(path: str) -> Picture:
    with Image.open(path) as image:
        return np.array(image)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["annotate", *args])


def test_writes_a_drawing_beside_where_it_was_called(photo: Path) -> None:
    done = run("canny", "photo.png")
    assert (done.exit_code, done.output) == (0, "photo.canny.png\n")
    drawing = pixels("photo.canny.png")
    assert drawing.shape == (40, 60, 3) and (drawing[:, 29:31].max(axis=(1, 2)) == 255).all()


def test_parameters_resolution_size_and_sheet(photo: Path) -> None:
    args = ("--set", "level=1", "--resolution", "80", "--size", "64x32", "--resize", "stretch", "-o", "out.png")
    assert run("threshold", "photo.png", *args).exit_code == 0
    assert pixels("out.png").shape == (32, 64, 3)
    assert run("threshold", "photo.png", "--sheet", "-o", "sheet.png").exit_code == 0
    assert pixels("sheet.png").shape[1] > 2 * 60


def test_a_drawing_for_a_canvas_is_made_at_its_pixels(photo: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).resize((900, 600)).save("l.png")
    assert run("canny", "l.png", "--size", "60x40", "-o", "out.png").exit_code == 0
    canny = ANNOTATORS.load("canny")
    drawn = annotate_at(canny, pixels("l.png"), make_params(canny, {}), 40, back=False)
    assert np.array_equal(pixels("out.png"), drawn)


def test_a_drawing_that_is_there_is_not_written_over(photo: Path) -> None:
    """It may have been painted in."""
    for name in ("photo.canny.png", "photo.canny-2.png"):
        assert run("canny", "photo.png").output == f"{name}\n"


def test_the_folder_is_made_and_one_that_cannot_be_is_said(photo: Path) -> None:
    assert run("canny", "photo.png", "-o", "new/folder/edges.png").exit_code == 0
    done = run("canny", "photo.png", "-o", "photo.png/edges.png")
    assert done.exit_code == 4 and "Choose another folder" in done.output


def test_of_a_folder_all_that_can_be_read_is_drawn(photo: Path) -> None:
    (folder := Path("photos")).mkdir()
    for name in "ac":
        (folder / f"{name}.png").write_bytes(photo.read_bytes())
    (folder / "b.png").write_bytes(b"no picture")
    done = run("canny", "photos", "-o", "drawn")
    assert done.exit_code == 1 and "b.png" in done.stderr and "1 of 3 pictures could not be read" in done.stderr
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["a.png", "c.png"]
    for name in "ac":
        (folder / f"{name}.png").write_bytes(b"no picture, too")
    assert run("canny", "photos", "-o", "others").exit_code == BadImage.exit_code


def test_a_way_to_fit_without_a_size_is_refused(photo: Path) -> None:
    done = run("canny", "photo.png", "--resize", "fill")
    assert done.exit_code == 2 and "--size" in done.output


def test_long_values_are_read_from_a_file(photo: Path) -> None:
    Path("boxes.json").write_text('[{"label": "person", "box": [0, 0, 1, 1]}]')
    assert run("boxes", "photo.png", "--set", "boxes=@boxes.json").exit_code == 0
    assert (pixels("photo.boxes.png") == (255, 0, 0)).all()


def test_lists_annotators_and_parameters() -> None:
    assert all(name in run("--list").output for name in ANNOTATORS)
    shown = run("canny", "--list").output
    assert "low=100  (1 to 255)" in shown and "In A1111: canny" in shown


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("cany", "photo.png"), "canny"),
        (("canny", "nothing.png"), "cannot be opened"),
        (("canny",), "Give an annotator and a picture"),
        (("canny", "photo.png", "--set", "low"), "KEY=VALUE"),
        (("canny", "photo.png", "--set", "low=0"), "low can be 1 to 255"),
        (("canny", "photo.png", "--set", "low=@nothing"), "cannot be read as text"),
        (("canny", "photo.png", "-o", "photo.jpg"), "end the name in .png"),
        (("canny", "photo.png", "--size", "big"), "WIDTHxHEIGHT"),
    ],
)
def test_mistakes_are_explained(photo: Path, args: tuple[str, ...], says: str) -> None:
    done = run(*args)
    assert done.exit_code == 2 and says in done.output and "Traceback" not in done.output


def test_the_reference_page_is_printed() -> None:
    assert CliRunner().invoke(command, ["--docs"]).output.startswith("# Annotators\n")
