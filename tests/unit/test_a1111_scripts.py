"""X/Y/Z plot and Prompt matrix: what A1111's arguments mean, cell by cell, and the sheet that comes of it."""

from time import perf_counter
from typing import Any

import pytest
from PIL import Image

from disegno.core.errors import RequestError
from disegno.engine.sheet import table
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.grid import grid, layout
from disegno.serving.a1111.scripts import Seeds, axes, find_plot, values_of

pytestmark = pytest.mark.unit


def index(label: str, form: str = "txt2img") -> int:
    return [axis.label for axis in axes(form)].index(label)


def axis(label: str) -> Any:
    return axes("txt2img")[index(label)]


@pytest.mark.parametrize(
    ("label", "text", "expected"),
    [
        ("Steps", "1, 2,3", ["1", "2", "3"]),
        ("Steps", "1-5", ["1", "2", "3", "4", "5"]),
        ("Steps", "10-20 (+5)", ["10", "15", "20"]),
        ("Steps", "5-1", ["5", "4", "3", "2", "1"]),
        ("CFG Scale", "1-2 [5]", ["1", "1.25", "1.5", "1.75", "2"]),
        ("CFG Scale", "1-2 (+0.5), 7", ["1", "1.5", "2", "7"]),
        ("Seed", "-1", ["-1"]),
        ("Prompt S/R", 'cat, "a, b"', ["cat", "a, b"]),
        ("Prompt S/R", 'cat, "a ""b"", c"\nd', ["cat", 'a "b", c', "d"]),
        ("Prompt order", "a,b", ["a\nb", "b\na"]),
    ],
)
def test_values_are_read_as_people_write_them(label: str, text: str, expected: list[str]) -> None:
    assert values_of(axis(label), text, []) == expected


def test_a_long_range_is_refused() -> None:
    for text in ("1-1000000000", "1-" + "9" * 20, "1-256," * 3000):
        with pytest.raises(RequestError, match="more than 256 values"):
            values_of(axis("Steps"), text, [])


def test_values_of_any_characters_are_read_in_no_time() -> None:
    began = perf_counter()
    for text in ('",' * 10000, ',"' * 10000, "a\r\nb\rc"):
        values_of(axis("Prompt S/R"), text, [])
    values_of(axis("Steps"), "1-2" + " " * 19000 + "x, 1-" + "9" * 900, [])
    assert perf_counter() - began < 1


BODY: dict[str, Json] = {"prompt": "a cat in a hat", "seed": 5, "steps": 20}
SEEDS = Seeds(iter(range(100, 200)).__next__, {"seed": -1, "subseed": -1})


def test_the_axes_stand_where_a1111_has_them() -> None:
    assert (index("Seed"), index("Steps"), index("CFG Scale"), index("Sampler")) == (1, 4, 6, 9)
    assert (index("Steps", "img2img"), index("CFG Scale", "img2img"), index("Sampler", "img2img")) == (4, 5, 9)


def test_every_pair_of_values_is_a_cell() -> None:
    args: list[Json] = [index("Steps"), "10,20", [], index("Prompt S/R"), "cat,dog", []]
    plot = find_plot("txt2img", "X/Y/Z plot", {**BODY, "script_name": "X/Y/Z plot", "script_args": args}, args, SEEDS)
    assert plot is not None
    seen = [(cell.place, cell.body["steps"], cell.body["prompt"], cell.body["seed"]) for cell in plot.cells]
    assert seen == [
        ((0, 0, 0), "10", "a cat in a hat", 5),
        ((1, 0, 0), "20", "a cat in a hat", 5),
        ((0, 1, 0), "10", "a dog in a hat", 5),
        ((1, 1, 0), "20", "a dog in a hat", 5),
    ]
    assert plot.labels == (("Steps: 10", "Steps: 20"), ("cat", "dog"), ("",))
    assert all("script_name" not in cell.body for cell in plot.cells)


def test_seeds_vary_along_an_axis_where_asked() -> None:
    args: list[Json] = [4, "1,2,3", [], 0, "", [], 0, "", [], True, False, False, False, True]
    plot = find_plot("txt2img", "x/y/z plot", BODY, args, SEEDS)
    assert plot is not None
    assert [cell.body["seed"] for cell in plot.cells] == [5, 6, 7]


def test_a_seed_of_an_axis_is_one_for_its_whole_row_unless_none_is_to_be_fixed() -> None:
    axes_of = [index("Seed"), "-1,7", [], index("CFG Scale"), "1,2", []]
    plot = find_plot("txt2img", "X/Y/Z plot", BODY, axes_of, SEEDS)
    assert plot is not None
    seeds = [cell.body["seed"] for cell in plot.cells]
    assert seeds[:2] == seeds[2:] and seeds[0] not in ("-1", "5") and seeds[1] == "7"
    assert plot.labels[0] == (f"Seed: {seeds[0]}", "Seed: 7")
    loose = [*axes_of, 0, "", [], True, False, False, True]
    found = find_plot("txt2img", "X/Y/Z plot", {**BODY, "subseed": 3}, loose, SEEDS)
    assert found is not None
    assert [cell.body["seed"] for cell in found.cells] == ["-1", "7"] * 2
    assert {cell.body["subseed"] for cell in found.cells} == {-1}


def test_prompt_order_moves_words() -> None:
    plot = find_plot("txt2img", "x/y/z plot", BODY, [index("Prompt order"), "cat,hat", []], SEEDS)
    assert plot is not None
    assert [cell.body["prompt"] for cell in plot.cells] == ["a cat in a hat", "a hat in a cat"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([99, "1"], "no such axis"),
        ([index("FP8 mode"), "x"], "not built in"),
        ([index("Prompt S/R"), "cow,dog"], "did not find"),
        ([4, "1-50", [], 6, "1-50"], "at most 64"),
        ([4, "1", [], 0, "", [], 0, "", [], "maybe"], "draw_legend"),
    ],
)
def test_what_cannot_be_plotted_is_said(args: list[Json], words: str) -> None:
    with pytest.raises(WireError, match=words):
        find_plot("txt2img", "X/Y/Z plot", BODY, args, SEEDS)


def test_an_axis_may_be_named() -> None:
    plot = find_plot("txt2img", "X/Y/Z plot", BODY, ["cfg scale", "3,4", []], SEEDS)
    assert plot is not None
    assert [cell.body["cfg_scale"] for cell in plot.cells] == ["3", "4"]


def test_a_prompt_matrix_is_every_combination() -> None:
    plot = find_plot("txt2img", "Prompt matrix", {**BODY, "prompt": "a cat|red|in snow"}, [False, True], SEEDS)
    assert plot is not None
    prompts = [cell.body["prompt"] for cell in plot.cells]
    assert prompts == ["a cat", "a cat, red", "a cat, in snow", "a cat, red, in snow"]
    assert [cell.place for cell in plot.cells] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert plot.labels == (("-", "red"), ("-", "in snow"), ("",))
    assert [cell.body["seed"] for cell in plot.cells] == [5, 6, 7, 8]


def test_what_a_prompt_matrix_does_not_know_is_said() -> None:
    for args, words in (([False, False, "both"], "permitted: positive, negative"), ([7], "put_at_start")):
        with pytest.raises(WireError, match=words):
            find_plot("txt2img", "Prompt matrix", {**BODY, "prompt": "a|b"}, args, SEEDS)


def test_grids_are_laid_out_as_a1111_does() -> None:
    assert [layout(n, -1, 1) for n in (1, 2, 4, 5, 9)] == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]
    assert (layout(6, 0, 2), layout(6, 3, 1), layout(2, 9, 1)) == ((3, 2), (2, 3), (1, 2))
    red, blue = (Image.new("RGB", (4, 2), colour) for colour in ("red", "blue"))
    page = grid([red, blue, red])
    assert page.size == (8, 4)
    assert [page.getpixel(at) for at in ((0, 0), (4, 0), (4, 2))] == [(255, 0, 0), (0, 0, 255), (0, 0, 0)]


def test_a_table_has_its_labels_outside_its_pictures() -> None:
    cells = [[Image.new("RGB", (64, 64), colour) for colour in row] for row in (("red", "blue"), ("green", "black"))]
    page = table(cells, ["one", "two"], ["first", "a much longer label of a row"], margin=4)
    bare = table(cells, ["one", "two"], ["first", "second"], legend=False)
    assert bare.size == (128, 128)
    left, top = page.width - 132, page.height - 132
    assert left > 0
    assert top > 0
    assert page.getpixel((left, top)) == (255, 0, 0)
    assert page.getpixel((left + 68, top + 68)) == (0, 0, 0)
    assert min(page.crop((0, top, left, page.height)).convert("L").tobytes()) < 128  # something is written there
