"""The page as different persons meet it: without a mouse, with a camera's photo, on a phone, with many jobs."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Route, expect

from kit.page import CAR, Visit, picture_of, visit
from kit.server import Server, start

pytestmark = pytest.mark.e2e

ORIENTATION = 0x0112
ENDED = {"id": "0" * 32, "kind": "generate", "state": "cancelled", "attempts": 1, "created": 1, "result": None}


@contextmanager
def _not_drawn(there: Visit) -> Iterator[list[Any]]:
    """Give the requests of the jobs that the page sends: the server does not see them."""
    sent: list[Any] = []

    def answer(route: Route) -> None:
        if route.request.method != "POST":
            return route.fallback()
        sent.append(route.request.post_data_json["request"])
        return route.fulfill(status=202, content_type="application/json", body=json.dumps(ENDED))

    there.page.route("**/v1/jobs", answer)
    yield sent
    there.page.unroute("**/v1/jobs", answer)


def _sent(there: Visit, press: Callable[[], Any]) -> Any:
    """Return the request that is sent when the button is pressed."""
    with _not_drawn(there) as sent:
        press()
        there.page.wait_for_function("document.querySelector('.desk-go button[aria-busy]') === null")
        there.page.wait_for_timeout(200)
    assert len(sent) == 1, sent
    return sent[0]


def test_a_keyboard_is_enough(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_label("Prompt", exact=True).fill("a fox")
        draw.locator(".stage-frame").click()  # takes the focus out of the form
        assert _sent(there, lambda: there.page.keyboard.press("Control+Enter"))["prompt"] == "a fox"
        draw.get_by_text("Guidance, seed, sampler").click()
        seed = draw.get_by_label("Seed", exact=True)
        seed.fill(str(2**53 + 1))
        seed.press("ArrowUp")
        expect(seed).to_have_value(str(2**53 + 2))
        steps = draw.get_by_role("spinbutton", name="Steps")
        for said, means in (("12.6", "13"), ("", "13")):
            steps.fill(said)
            steps.press("Tab")
            expect(steps).to_have_value(means)
        pictures = there.tab("pictures")
        pictures.get_by_role("radio", name="Change", exact=True).focus()
        for _ in range(2):
            there.page.keyboard.press("ArrowRight")  # the form is made anew, and the focus stays
        expect(pictures.get_by_role("radio", name="Extend")).to_be_focused()


def test_a_cameras_photo_is_changed_at_the_models_size(
    page_browser: Browser, page_server: Server, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # it stands on a side
    Image.new("CMYK", (2400, 3200), (0, 80, 160, 0)).save(tmp_path / "photo.jpg", exif=exif)
    with visit(page_browser, page_server.url) as there:
        tab = there.tab("pictures")
        there.upload(tab.get_by_role("button", name="Upload"), tmp_path / "photo.jpg")
        width, height = (tab.get_by_role("spinbutton", name=name) for name in ("Width", "Height"))
        expect(width).to_have_attribute("placeholder", "144")
        expect(height).to_have_attribute("placeholder", "112")
        asked = _sent(there, lambda: tab.locator(".desk-go button").click())
        assert (asked["width"], asked["height"]) == (144, 112)
        assert picture_of(asked["init"]["image"]).size == (2048, 1536)
        tab.get_by_label("Model", exact=True).select_option("mini")
        expect(width).to_have_attribute("placeholder", "592")
        width.fill("1024")
        width.press("Tab")
        expect(height).to_have_attribute("placeholder", "768")
        width.fill("")
        tab.get_by_role("radio", name="Extend").click()
        tab.get_by_label("Right").fill("64")
        tab.get_by_label("Right").press("Tab")
        expect(tab.get_by_text("It becomes 656 × 440.")).to_be_visible()
        tab.get_by_label("Model", exact=True).select_option("diorama")
        expect(tab.get_by_text("It becomes 208 × 112.")).to_be_visible()


def test_what_is_painted_over_may_be_everything(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        tab = there.tab("pictures")
        there.upload(tab.get_by_role("button", name="Upload"), CAR.with_name("car.png"))
        tab.get_by_role("radio", name="Paint over").click()
        tab.get_by_role("button", name="Paint over a part").click()
        tab.get_by_label("Drawing board").press("g")
        tab.get_by_label("Drawing board").click()
        asked = _sent(there, lambda: tab.locator(".desk-go button").click())
        assert picture_of(asked["init"]["mask"]).convert("L").getextrema() == (255, 255)


def test_the_board_takes_the_pictures_new_shape(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_role("button", name="Add a control").click()
        draw.get_by_role("button", name="Draw on it").click()
        canvas = draw.get_by_label("Drawing board")
        there.stroke(canvas, (0.1, 0.5), (0.9, 0.5))
        draw.get_by_role("spinbutton", name="Width").fill("192")
        draw.get_by_role("spinbutton", name="Width").press("Tab")
        expect(canvas).to_have_attribute("width", "768")
        expect(canvas).to_have_attribute("height", "512")
        there.stroke(canvas, (0.4, 0.1), (0.6, 0.1))
        shown = picture_of(str(draw.locator(".unit .thumb img").get_attribute("src")))
        assert shown.size == (768, 512)
        for y in (256, 51):  # the drawing's middle is kept, as when it is cut to be used
            assert max(shown.getpixel((384, near)) for near in range(y - 8, y + 9)) == (255, 255, 255)


def test_a_second_photo_is_drawn_without_the_first_ones_parameters(
    page_browser: Browser, page_server: Server, tmp_path: Path
) -> None:
    Image.linear_gradient("L").save(tmp_path / "grey.png")
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_role("button", name="Add a control").click()
        unit = draw.locator(".unit")
        drawing = unit.locator(".thumb img")
        there.upload(unit.get_by_role("button", name="Upload"), CAR)
        expect(drawing).to_be_visible(timeout=60_000)
        edges = str(drawing.get_attribute("src"))
        unit.get_by_label("Drawn by").select_option("palette")
        expect(drawing).not_to_have_attribute("src", edges, timeout=60_000)
        palette = str(drawing.get_attribute("src"))
        unit.locator('input[type="range"]').first.fill("32")
        expect(drawing).not_to_have_attribute("src", palette, timeout=60_000)
        cells = str(drawing.get_attribute("src"))
        there.upload(unit.get_by_role("button", name="Upload"), tmp_path / "grey.png")
        expect(unit.get_by_label("Drawn by")).to_have_value("canny")
        expect(drawing).not_to_have_attribute("src", cells, timeout=60_000)
        expect(there.page.get_by_role("alert")).to_have_count(0)


def test_a_changed_picture_that_is_dropped_goes_to_its_own_tab(page_browser: Browser, page_server: Server) -> None:
    picture = "data:image/png;base64," + base64.b64encode(CAR.with_name("car.png").read_bytes()).decode()
    asked = {"prompt": "a fox at night", "steps": 1, "seed": 3, "init": {"image": picture, "denoise": 0.4}}
    job = page_server.wait(page_server.submit("generate", asked)["id"])
    png = page_server.ask("GET", job["result"]["files"][0]["url"]).content
    with visit(page_browser, page_server.url) as there:
        there.drop("#tab-draw .desk", "x.png", png)
        tab = there.page.locator("#tab-pictures")
        expect(tab.get_by_label("Prompt", exact=True)).to_have_value("a fox at night")
        expect(tab).to_be_visible()
        expect(tab.get_by_alt_text("The picture that is changed")).to_be_visible()


def test_each_of_two_tabs_has_its_own_again_after_a_reload(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        other = there.page.context.new_page()
        other.goto(page_server.url)
        for page, said in ((there.page, "a fox"), (other, "a boat")):
            page.locator("#tab-draw").get_by_label("Prompt", exact=True).fill(said)
            page.wait_for_timeout(700)  # it is kept
        for page, said in ((there.page, "a fox"), (other, "a boat")):
            page.reload()
            expect(page.locator("#tab-draw").get_by_label("Prompt", exact=True)).to_have_value(said, timeout=20_000)


def test_without_a_secure_address_the_camera_says_why(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        there.page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
        there.tab("pictures").get_by_role("button", name="Camera").click()
        expect(there.page.get_by_role("alert")).to_contain_text("not on a secure address")


def test_pictures_behind_many_other_jobs_are_found(page_browser: Browser, tmp_path: Path) -> None:
    from disegno.serving.files import Files
    from disegno.serving.store import New, Store
    from disegno.serving.words import Outcome, StoredFile

    files, content = Files(tmp_path / "server"), CAR.read_bytes()
    files.prepare()
    store = Store(f"sqlite:///{tmp_path / 'server' / 'jobs.sqlite'}")
    for n in range(252):
        drawn = n < 2  # the oldest
        job, _ = store.add(New("local", "generate" if drawn else "annotate", b"{}", str(n), "diorama"))
        store.claim(job.id)
        kept = (StoredFile("0.png", "image", "image/png", len(content), "0" * 64),)
        store.publish(job.id, 1, Outcome(kept, (), {"request": {"prompt": f"picture {n}"}, "seeds": ["1"]}))
        files.result(job.id).mkdir()
        (files.result(job.id) / "0.png").write_bytes(content if drawn else b"")
    store.close()
    server = start(tmp_path / "server").wait_ready()
    try:
        with visit(page_browser, server.url) as there:
            expect(there.tab("gallery").locator(".picture")).to_have_count(2)
    finally:
        server.stop()


def test_a_drawing_that_comes_late_is_waited_for_and_replaces_no_newer_one(
    page_browser: Browser, page_server: Server
) -> None:
    held: list[Route] = []
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        draw.get_by_label("Prompt", exact=True).fill("a red car")
        draw.get_by_role("button", name="Add a control").click()
        unit = draw.locator(".unit")
        there.upload(unit.get_by_role("button", name="Upload"), CAR)
        drawing = unit.locator(".thumb img")
        expect(drawing).to_be_visible(timeout=60_000)
        edges = str(drawing.get_attribute("src"))
        there.page.route("**/v1/jobs/*/files/*", lambda route: held.append(route))
        for n, control in enumerate(("palette", "canny")):
            unit.get_by_label("Control", exact=True).last.select_option(control)
            _wait_for(there, lambda n=n: len(held) > n)
        for route in reversed(held):  # what the first control's annotator drew comes last
            route.continue_()
            there.page.wait_for_timeout(500)
        expect(drawing).to_have_attribute("src", edges)
        unit.locator('input[type="range"]').first.fill("1")
        with there.page.expect_request(_generates) as asked:
            draw.locator(".desk-go button.primary").click()
            _wait_for(there, lambda: len(held) > 2)
            held[2].continue_()
        (control,) = asked.value.post_data_json["request"]["controls"]
        assert control["image"] == drawing.get_attribute("src") != edges
        there.page.unroute("**/v1/jobs/*/files/*")


def _generates(asked: Any) -> bool:
    return asked.method == "POST" and asked.url.endswith("/v1/jobs") and asked.post_data_json["kind"] == "generate"


def _wait_for(there: Visit, found: Callable[[], bool]) -> None:
    for _ in range(300):
        if found():
            return
        there.page.wait_for_timeout(100)
    raise AssertionError("it did not come")


def test_a_photo_in_a_picture_of_the_command_line_is_drawn_anew(page_browser: Browser, page_server: Server) -> None:
    """With a second pass it holds the photo, and not what was drawn from it."""
    photo = "data:image/png;base64," + base64.b64encode(CAR.read_bytes()).decode()
    unit = {"name": "canny", "image": "car.png", "annotate": None, "params": {"low": 1}, "strength": 0.8}
    asked = {"prompt": "a blue car", "seed": 3, "hires": {"scale": 2}, "controls": [unit]}
    info, out = PngInfo(), BytesIO()
    record = {"request": asked, "image": 0, "conditions": [], "sources": {"car.png": photo}}
    info.add_itxt("disegno", json.dumps(record), zip=True)
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    with visit(page_browser, page_server.url) as there:
        there.drop("#tab-draw .desk", "x.png", out.getvalue())
        tab = there.page.locator("#tab-draw")
        drawing = tab.locator(".unit .thumb img")
        expect(drawing).to_be_visible(timeout=60_000)
        expect(tab.locator('.unit input[type="range"]').first).to_have_value("1")  # Canny's lower threshold
        with _not_drawn(there) as sent:
            tab.locator(".desk-go button.primary").click()
            _wait_for(there, lambda: bool(sent))
        (control,) = sent[0]["controls"]
        assert (control["image"], control["strength"]) == (drawing.get_attribute("src"), 0.8)
        colours = picture_of(control["image"]).getcolors()
        assert control["annotate"] == "none" and {colour for _, colour in colours or ()} == {(0, 0, 0), (255, 255, 255)}
