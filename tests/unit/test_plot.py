"""A plot's plan: any field as an axis, ranges as A1111 writes them, and every choice of a prompt's parts."""

from dataclasses import replace

import pytest
from PIL import Image

from disegno.core.errors import RequestError, UnknownName
from disegno.core.plot import Axis, parse_axis, plan_matrix, plan_plot, spread
from disegno.core.request import ControlUnit, Hires, Request
from disegno.core.result import Result
from disegno.engine.plot import Plotted
from disegno.engine.sheet import sheet, table, wrapped

pytestmark = pytest.mark.unit

REQUEST = Request(
    prompt="a red car",
    negative="red",
    controls=(ControlUnit(name="canny", image="a.png"), ControlUnit(name="depth", image="b.png")),
    hires=Hires(),
)


@pytest.mark.parametrize(
    "text, whole, expected",
    [
        ("1-4", True, "1 2 3 4"),
        ("1-9 (+2)", True, "1 3 5 7 9"),
        ("10-4(-3)", True, "10 7 4"),
        ("3-1", True, "3 2 1"),
        ("0-1[3]", False, "0 0.5 1"),
        ("1-10 [5]", True, "1 3 6 8 10"),
        ("0.1-0.3(+0.1)", False, "0.1 0.2 0.3"),
        ("7", True, "7"),
        ("9007199254740993-9007199254740994", True, "9007199254740993 9007199254740994"),  # of no float
    ],
)
def test_ranges_are_written_out(text: str, whole: bool, expected: str) -> None:
    assert spread([text], whole) == tuple(expected.split())


@pytest.mark.parametrize("text", ["1-5(0)", "1-5(-1)", "1-100000"])
def test_a_range_without_an_end_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="leads nowhere"):
        spread([text], True)


def test_an_axis_is_a_field_and_its_values() -> None:
    assert parse_axis("cfg=2, 4,6") == Axis("cfg", ("2", "4", "6"))
    assert parse_axis("cfg=2\n4\r6") == Axis("cfg", ("2", "4", "6"))
    assert parse_axis('replace=red,"dark, blue"') == Axis("replace", ("red", "dark, blue"))
    for bad in ("cfg", "=2", "cfg=", "cfg=2,,3"):
        with pytest.raises(RequestError, match="FIELD=V1"):
            parse_axis(bad)


def _cells(*axes: str) -> list[Request]:
    return [cell.request for cell in plan_plot(REQUEST, [parse_axis(axis) for axis in axes]).cells]


def test_any_field_of_the_request_is_an_axis() -> None:
    assert [r.cfg for r in _cells("cfg=2-4")] == [2, 3, 4]
    assert [r.sampler for r in _cells("sampler=Euler,DDIM")] == ["Euler", "DDIM"]
    assert [r.hires.denoise for r in _cells("hires.denoise=0.2,0.5") if r.hires] == [0.2, 0.5]
    assert [r.controls[1].strength for r in _cells("controls.1.strength=0.5,1")] == [0.5, 1.0]
    assert [r.controls[1].strength for r in _cells("controls.depth.strength=0.5,1")] == [0.5, 1.0]
    assert [r.controls[0].curve for r in _cells('controls.canny.curve="1@0,0@1",1@0')] == ["1@0,0@1", "1@0"]
    assert [(r.width, r.height) for r in _cells("size=64x128,128x64")] == [(64, 128), (128, 64)]
    replaced = [(r.prompt, r.negative) for r in _cells("replace=red,blue")]
    assert replaced == [("a red car", "red"), ("a blue car", "blue")]
    assert [r.seed for r in _cells("seed=1-3")] == [1, 2, 3]
    assert [r.styles for r in _cells("styles=Noir,Plain")] == [("Noir",), ("Plain",)]


def test_words_of_each_image_and_of_the_hires_pass_are_changed_too() -> None:
    """As where a picture with styles or wildcards is made again: each image has its words in full."""
    hires = Hires(prompt="a red car, sharp", negatives=("dark red", "red"))
    request = replace(REQUEST, batch=2, prompts=("a red car, noir", "a car"), negatives=("red", ""), hires=hires)

    def cells(axis: str) -> list[Request]:
        return [cell.request for cell in plan_plot(request, [parse_axis(axis)]).cells]

    _, blue = cells("replace=red,blue")
    assert (blue.prompts, blue.negatives) == (("a blue car, noir", "a car"), ("blue", ""))
    assert blue.hires and (blue.hires.prompt, blue.hires.negatives) == ("a blue car, sharp", ("dark blue", "blue"))
    assert [each.prompts for each in cells("replace=noir,plain")] == [request.prompts, ("a red car, plain", "a car")]
    assert [(r.prompt, r.prompts, len(r.negatives)) for r in cells("prompt=a,b")] == [("a", (), 2), ("b", (), 2)]
    assert [r.hires.negatives for r in cells("hires.negative=a,b") if r.hires] == [(), ()]
    assert [cell.request.prompts for cell in plan_matrix(replace(request, prompt="a|b")).cells] == [(), ()]


def test_an_open_seed_is_drawn_once_for_all() -> None:
    seeds = {request.seed for request in _cells("cfg=2,4", "steps=3,4")}
    assert len(seeds) == 1 and seeds != {-1}


def test_three_axes_fill_three_directions_and_a_model_is_opened_once() -> None:
    plot = plan_plot(REQUEST, [parse_axis(axis) for axis in ("model=a,b", "cfg=1,2,3", "steps=5,6")])
    assert plot.labels == (("model a", "model b"), ("cfg 1", "cfg 2", "cfg 3"), ("steps 5", "steps 6"))
    assert len({cell.place for cell in plot.cells}) == 12
    models = [cell.request.model for cell in plot.cells]
    assert models == sorted(models)  # all of a, then all of b
    for cell in plot.cells:
        x, y, z = cell.place
        assert (cell.request.model, cell.request.cfg, cell.request.steps) == ("ab"[x], y + 1, z + 5)


@pytest.mark.parametrize(
    "axis, message",
    [
        ("cgf=1", "cfg"),
        ("controls=1", "controls holds several values"),
        ("controls.canny.layers=1", "holds several values"),
        ("controls.canny.strengths=1", "There is no field"),
        ("controls.pose.strength=1", "has not"),
        ("init.denoise=0.5", "has not"),
        ("steps=many", "steps"),
        ("size=64", "WIDTHxHEIGHT"),
        ("replace=green,blue", "neither"),
        ("seed=1-200", "400 cells"),
    ],
)
def test_what_is_no_axis_is_said(axis: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan_plot(REQUEST, [parse_axis(axis), parse_axis("cfg=1,2")])


def test_unknown_fields_offer_the_nearest() -> None:
    with pytest.raises(UnknownName, match="sampler"):
        plan_plot(REQUEST, [Axis("samplr", ("Euler",))])


def test_a_matrix_is_every_choice() -> None:
    plot = plan_matrix(Request(prompt="a car | at night| in snow |from above"))
    assert len(plot.cells) == 8
    assert plot.labels == (("-", "at night", "in snow", "at night, in snow"), ("-", "from above"), ("",))
    prompts = {cell.place[:2]: cell.request.prompt for cell in plot.cells}
    assert prompts[0, 0] == "a car"
    assert prompts[3, 1] == "a car, at night, in snow, from above"
    first = plan_matrix(Request(prompt="a car|at night"), parts_first=True)
    assert [cell.request.prompt for cell in first.cells] == ["a car", "at night, a car"]
    for bad in ("a car", "|".join("abcdefghij")):
        with pytest.raises(RequestError, match="no matrix"):
            plan_matrix(Request(prompt=bad))


def test_the_sheet_has_every_picture_in_its_place() -> None:
    plot = plan_plot(REQUEST, [parse_axis("cfg=1,2"), parse_axis("steps=5,6"), parse_axis("seed=1,2")])
    colours = [(60 * n % 256, 30 * n % 256, 255 - 30 * n) for n in range(8)]
    results = tuple(
        Result(images=(Image.new("RGB", (64, 48), colour),), request=cell.request, seeds=(0,))
        for colour, cell in zip(colours, plot.cells, strict=True)
    )
    page = Plotted(plot, results).page()
    found = {colour for _, colour in page.getcolors(1 << 20) or []}
    assert set(colours) <= found
    ended = Plotted(plot, results[:3]).page()  # early: what was not drawn is grey
    found = {colour for _, colour in ended.getcolors(1 << 20) or []}
    assert set(colours[:3]) | {(128, 128, 128)} <= found and not set(colours[3:]) & found and ended.size == page.size
    one = Plotted(plan_plot(REQUEST, [parse_axis("cfg=1,2")]), results[:2]).page()
    assert one.width < page.width and one.height < page.height


def test_a_sheet_of_much_is_no_larger_than_a_file_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("plot", "sheet"):
        monkeypatch.setattr(f"disegno.engine.{module}.MAX_SIDE_PX", 1200)
    plot = plan_plot(REQUEST, [parse_axis("cfg=1-8"), parse_axis("steps=1-2"), parse_axis("seed=1-4")])
    large = Image.new("RGB", (400, 200))
    result = Result(images=(large, large), request=REQUEST, seeds=(0, 1))
    page = Plotted(plot, (result,) * len(plot.cells)).page()
    assert 1200 <= page.width < 1400 and page.height < 1200
    assert max(sheet([large] * 9, ["x"] * 9).size) < 1400


def test_labels_are_short_and_no_letter_of_them_is_lost() -> None:
    request = replace(REQUEST, controls=(ControlUnit(name="canny", image="a.png"),))
    plot = plan_plot(request, [parse_axis("controls.canny.strength=0.5"), parse_axis("subseed_strength=0.1")])
    assert plot.labels[:2] == (("canny strength 0.5",), ("subseed strength 0.1",))
    lines = wrapped("a controls.canny.strength 0.5", 60)
    assert len(lines) > 2 and "".join(lines).replace(" ", "") == "acontrols.canny.strength0.5"
    cell = Image.new("RGB", (400, 40), "black")
    page = table([[cell]], [""], ["1"])
    assert page.width < 440  # no room is kept that the label does not need
