"""The page's finer means of drawing: where and when a control acts, and sheets of many pictures."""

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from disegno.annotators.boxes import COLOURS
from disegno.core.curve import parse_curve
from kit.page import CAR, picture_of, shown_job, visit
from kit.server import Server, start

pytestmark = pytest.mark.e2e

PROMPT = "a red car on a city street"


def _request(server: Server, job_id: str) -> Any:
    return server.get(f"/v1/jobs/{job_id}/request")["request"]


def test_where_and_when_a_control_acts_is_painted(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_label("Prompt", exact=True).fill(PROMPT)
        draw.get_by_role("button", name="Add a control").click()
        draw.get_by_role("button", name="Draw on it").click()
        canvas = draw.get_by_label("Drawing board")
        there.stroke(canvas, (0.1, 0.6), (0.9, 0.6))
        unit = draw.locator(".unit")
        unit.get_by_text("Where", exact=True).click()
        unit.get_by_role("button", name="Paint where it acts").click()
        canvas.press("r")  # a box
        there.stroke(canvas, (0.05, 0.05), (0.5, 0.95))
        expect(unit.get_by_alt_text("Where the control acts")).to_be_visible()
        unit.get_by_text("When, and against the prompt").click()
        curve = unit.get_by_label("Strength over the steps", exact=True)
        for x, y in ((75, 60), (225, 30)):
            curve.click(position={"x": x, "y": y})
        points = unit.get_by_role("slider", name=re.compile("^Point"))
        expect(points).to_have_count(2)
        points.first.press("ArrowUp")
        points.last.press("Delete")
        text = unit.get_by_label("Strength over the steps, as a text")
        expect(text).to_have_value(re.compile(r"^[\d.]+@0\.\d+$"))
        text.fill("1@0.5,0@0.2")
        text.press("Enter")
        expect(unit.get_by_text("A curve is written as")).to_be_visible()  # shares go up
        text.fill("1@0.2,0.25@0.8")
        text.press("Tab")
        expect(points).to_have_count(2)
        there.page.evaluate("document.querySelector('.unit').scrollIntoView()")
        there.shot("region")
        draw.get_by_label("Prompt", exact=True).press("Control+Enter")
        (asked,) = _request(page_server, shown_job(draw))["controls"]
        assert parse_curve(asked["curve"]) == ((0.2, 1.0), (0.8, 0.25))
        mask = picture_of(asked["region"]).convert("L")
        assert [mask.getpixel((x * mask.width // 10, mask.height // 2)) for x in (2, 8)] == [255, 0]
        there.page.reload()
        expect(text).to_have_value(asked["curve"])
        expect(unit.get_by_alt_text("Where the control acts")).to_be_visible()


def test_boxes_are_moved_and_given_another_class(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_label("Prompt", exact=True).fill(PROMPT)
        draw.get_by_role("button", name="Add a control").click()
        there.upload(draw.get_by_role("button", name="Upload"), CAR)
        drawing = draw.locator(".unit .thumb img")
        expect(drawing).to_be_visible(timeout=60_000)
        edges = str(drawing.get_attribute("src"))
        draw.get_by_label("Drawn by").select_option("boxes")
        expect(drawing).not_to_have_attribute("src", edges, timeout=60_000)
        empty = str(drawing.get_attribute("src"))
        boxes = draw.get_by_label("boxes", exact=True)
        boxes.fill('[{"label": "cat", "box": [0.1, 0.1, 0.4, 0.4]}, {"label": "car", "box": [0.6, 0.1, 0.9, 0.4]}]')
        boxes.press("Tab")
        expect(drawing).not_to_have_attribute("src", empty, timeout=60_000)
        black, cat, car = (0, 0, 0), COLOURS["cat"], COLOURS["car"]
        assert _colours(drawing, (0.25, 0.25), (0.75, 0.25), (0.25, 0.75)) == [cat, car, black]
        draw.get_by_role("button", name="Draw on it").click()
        canvas = draw.get_by_label("Drawing board")
        canvas.press("m")
        there.stroke(canvas, (0.25, 0.25), (0.25, 0.75))
        assert _colours(drawing, (0.25, 0.25), (0.75, 0.25), (0.25, 0.75)) == [black, car, cat]
        draw.get_by_label("Class", exact=True).select_option(label="dog")
        canvas.press("g")
        there.stroke(canvas, (0.25, 0.75), (0.25, 0.75))
        assert _colours(drawing, (0.75, 0.25), (0.25, 0.75)) == [car, COLOURS["dog"]]
        there.shot("boxes")
        draw.get_by_role("button", name="Undo").click()
        assert _colours(drawing, (0.25, 0.75)) == [cat]


def _colours(drawing: Any, *places: tuple[float, float]) -> list[Any]:
    """Return what is at these places of a unit's drawing."""
    shown = picture_of(drawing.get_attribute("src"))
    return [shown.getpixel((int(x * shown.width), int(y * shown.height))) for x, y in places]


def test_a_key_opens_the_page(page_browser: Browser, tmp_path: Path) -> None:
    server = start(tmp_path, "--api-key", "a-key-of-my-own")
    try:
        with visit(page_browser, server.url, "/?key=a-key-of-my-own") as there:
            assert there.page.url.rstrip("/") == server.url
            expect(there.page.locator("#tab-draw").get_by_label("Prompt", exact=True)).to_be_visible()
            expect(there.tab("teach")).to_have_text(re.compile("^Send a data set.*There are no data sets yet"))
            there.said.clear()  # that the model's process was starting
    finally:
        server.stop()


def test_a_sheet_shows_values_and_words(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        prompt = draw.get_by_label("Prompt", exact=True)
        prompt.fill("a castle | at night")
        draw.get_by_text("A sheet of many pictures").first.click()
        draw.get_by_role("radio", name="Values").click()
        prompt.press("Control+Enter")
        expect(there.page.get_by_role("alert")).to_contain_text("which values")
        draw.get_by_label("Columns", exact=True).select_option("cfg")
        draw.get_by_label("Columns: values").fill("2, 5")
        draw.get_by_label("Rows", exact=True).select_option("seed")
        draw.get_by_label("Rows: values").fill("1-2")
        steps = draw.get_by_role("spinbutton", name="Steps")
        steps.fill("3")
        steps.press("Control+Enter")  # what was typed counts before the field is left
        job = page_server.get(f"/v1/jobs/{shown_job(draw)}")
        assert job["result"]["facts"]["request"]["steps"] == 3
        assert job["kind"] == "sheet" and job["result"]["facts"]["seeds"] == ["1", "1", "2", "2"]
        assert [file["role"] for file in job["result"]["files"]] == ["sheet"] + 4 * ["image"]
        expect(draw.locator(".strip button")).to_have_count(5)
        draw.locator(".strip button").nth(3).click()
        expect(draw.locator(".stage-facts").last).to_contain_text("Seed 2")
        draw.locator(".strip button").first.click()
        there.page.get_by_role("alert").get_by_role("button").click()
        draw.get_by_text("A sheet of many pictures").first.evaluate("element => element.scrollIntoView()")
        there.shot("sheet")
        draw.get_by_role("radio", name="Words").click()
        prompt.press("Control+Enter")
        expect(draw.locator(".strip button")).to_have_count(3, timeout=60_000)
        words = page_server.get(f"/v1/jobs/{shown_job(draw)}")
        assert words["result"]["facts"]["prompts"] == ["a castle", "a castle, at night"]
        draw.get_by_role("radio", name="Values").click()
        draw.get_by_label("Columns", exact=True).select_option("controls.0.strength")
        prompt.press("Control+Enter")
        expect(there.page.get_by_role("alert").last).to_contain_text("which this request has not")
        assert there.said and all("422" in said for said in there.said)
        there.said.clear()  # the browser's own words about the refusal
        gallery = there.tab("gallery")
        gallery.locator(f'.picture img[src*="{job["id"]}"]').first.click()
        expect(there.page.locator("dialog .facts")).to_contain_text("a castle")


@pytest.mark.parametrize(
    "fields, code",
    [
        ({"x": "model=/etc/passwd,diorama"}, "unknown_name"),
        ({"x": "controls.0.image=/etc/passwd"}, "invalid_request"),
        ({"x": "steps=151,152"}, "over_limit"),
        ({"x": "seed=1-200", "request": {"prompt": "x", "batch": 4}}, "over_limit"),
        ({"x": "seed=1-9999"}, "invalid_request"),
        ({"x": "none=1"}, "unknown_name"),
        ({}, "invalid_request"),
        ({"x": "cfg=1,2", "matrix": True}, "invalid_request"),
        ({"matrix": True}, "invalid_request"),
    ],
)
def test_a_sheet_that_cannot_be_is_refused_at_once(page_server: Server, fields: dict[str, Any], code: str) -> None:
    body = {"kind": "sheet", "request": {"request": {"prompt": "x"}} | fields}
    answer = page_server.ask("POST", "/v1/jobs", body)
    assert answer.status_code == 422 and answer.json()["error"] == code, answer.text


def test_a_photo_is_drawn_as_the_control_was_taught(page_browser: Browser, page_server: Server) -> None:
    """The shipped palette was taught on cells of 16 pixels; the annotator's own are of another size."""
    (card,) = (each for each in page_server.get("/v1/controls") if each["name"] == "palette")
    assert card["params"] == {"cell": 16}
    own = next(each for each in page_server.get("/v1/annotators") if each["name"] == "palette")
    assert next(param["default"] for param in own["params"] if param["name"] == "cell") != 16
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_role("button", name="Add a control").click()
        unit = draw.locator(".unit")
        there.upload(unit.get_by_role("button", name="Upload"), CAR)
        drawing = unit.locator(".thumb img")
        expect(drawing).to_be_visible(timeout=60_000)
        first = str(drawing.get_attribute("src"))
        unit.get_by_label("Control", exact=True).last.select_option("palette")
        expect(drawing).not_to_have_attribute("src", first, timeout=60_000)
        assert _cells(str(drawing.get_attribute("src"))) == 16
        other = str(drawing.get_attribute("src"))
        expect(unit.locator('input[type="range"]').first).to_have_value("16")
        unit.locator('input[type="range"]').first.fill("32")
        expect(drawing).not_to_have_attribute("src", other, timeout=60_000)
        assert _cells(str(drawing.get_attribute("src"))) == 32


def test_a_colour_fix_has_its_own_fields_which_come_back_from_a_picture(
    page_browser: Browser, page_server: Server
) -> None:
    image = "data:image/png;base64," + base64.b64encode(CAR.read_bytes()).decode()
    unit = {"name": "tile-colorfix", "image": image, "annotate": "none", "params": {"variation": 5, "sharpness": 1.5}}
    job = page_server.wait(page_server.submit("generate", {"prompt": "x", "steps": 1, "controls": [unit]})["id"])
    png = page_server.ask("GET", job["result"]["files"][0]["url"]).content
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_role("button", name="Add a control").click()
        unit = draw.locator(".unit")
        there.upload(unit.get_by_role("button", name="Upload"), CAR)
        expect(unit.locator(".thumb img")).to_be_visible(timeout=60_000)
        expect(unit.get_by_label("Variation").first).to_be_hidden()
        unit.get_by_label("Control", exact=True).last.select_option("tile-colorfix")
        unit.get_by_label("Variation").first.fill("3")
        unit.get_by_label("Sharpness").first.fill("0.5")
        unit.get_by_text("When, and against the prompt").click()
        expect(unit.get_by_text("What counts more")).to_be_hidden()
        draw.get_by_label("Prompt", exact=True).fill("a red car")
        with there.page.expect_request("**/v1/jobs") as asked:
            draw.get_by_label("Prompt", exact=True).press("Control+Enter")
        (control,) = asked.value.post_data_json["request"]["controls"]
        assert (control["name"], control["params"]) == ("tile-colorfix", {"variation": 3, "sharpness": 0.5})
        there.drop("#tab-draw .desk", "x.png", png)
        expect(draw.locator(".unit").get_by_label("Variation").first).to_have_value("5")
        expect(draw.locator(".unit").get_by_label("Sharpness").first).to_have_value("1.5")


def _cells(uri: str) -> int:
    """Return how wide the cells of one colour are, in pixels of a canvas of 128."""
    pixels = np.asarray(picture_of(uri).convert("RGB")).astype(int)
    changes = np.flatnonzero(np.abs(np.diff(pixels, axis=1)).sum(axis=(0, 2))) + 1
    return int(np.gcd.reduce(changes)) * 128 // pixels.shape[1]
