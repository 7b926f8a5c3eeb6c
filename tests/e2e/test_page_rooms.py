"""The page's library, its queue, and the wizard of its trainings: files verified and given away, data sets sent."""

import io
import re
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Route, expect

from kit.hub import Hub, lora_file
from kit.page import UNNAMED, visit
from kit.pairs import CAPTION, views
from kit.server import Server

pytestmark = pytest.mark.e2e

SIZE = 64
LATE_SECONDS = 4.0


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for i, view in enumerate(views(10, SIZE)):
            for folder, picture in (("image", view), ("condition", view.convert("L"))):
                png = io.BytesIO()
                picture.convert("RGB").save(png, "PNG")
                out.writestr(f"mine/{folder}/{i}.png", png.getvalue())
            out.writestr(f"mine/image/{i}.txt", CAPTION)
        for folder in ("image", "condition"):
            out.writestr(f"mine/{folder}/broken.png", b"no picture")
        out.writestr("mine/image/broken.txt", CAPTION)
        out.writestr("../out.png", b"no picture")
    return path


def _card(there: Any, name: str) -> Any:
    return there.page.locator("#tab-library .weights").filter(
        has=there.page.get_by_role("heading", name=name, exact=True)
    )


def test_a_file_is_verified_and_downloaded_with_its_card(
    page_browser: Browser, page_server: Server, page_folder: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (400, 200), "teal").save(page_folder / "models" / "mini.preview.png")
    page_server.ask("POST", "/v1/models/look")
    with visit(page_browser, page_server.url, accept_downloads=True) as there:
        library = there.tab("library")
        library.get_by_role("button", name="Look again").click()
        expect(_card(there, "mini").locator(".preview-picture")).to_be_visible()
        expect(_card(there, "canny").locator(".preview-picture")).to_be_visible()  # the built-in model's example
        base = _card(there, "minibase")
        base.get_by_role("button", name="More about").click()
        base.get_by_role("menuitem", name="Verify").click()
        expect(base.locator(".file-work")).to_contain_text("SHA-256", timeout=60_000)
        base.get_by_role("button", name="More about").click()
        base.get_by_role("menuitem", name="Download with its card").click()
        with there.page.expect_download() as download:
            base.get_by_role("link", name="minibase.safetensors").click()
        download.value.save_as(tmp_path / "base")
        assert (tmp_path / "base").read_bytes() == (page_folder / "models" / "minibase.safetensors").read_bytes()
        with there.page.expect_download() as download:
            base.get_by_role("link", name="Its card").click()
        download.value.save_as(tmp_path / "card")
        assert "SHA-256" in (tmp_path / "card").read_text()
        there.shot("library")
        model = _card(there, "mini")
        model.get_by_role("button", name="More about").click()
        model.get_by_role("menuitem", name="Convert: names of diffusers").click()
        expect(model.get_by_role("link", name="mini.zip")).to_be_visible(timeout=60_000)
        assert there.page.evaluate(UNNAMED) == []


def test_a_model_is_fetched_from_the_web_and_used(
    page_browser: Browser, page_server: Server, page_folder: Path, page_hub: tuple[Hub, str]
) -> None:
    hub, _ = page_hub
    hub.add("me/inks", {"sepia.safetensors": lora_file(4096)})
    path = "/me/inks/resolve/main/sepia.safetensors"
    hub.held[path] = threading.Event()
    with visit(page_browser, page_server.url) as there:
        library = there.tab("library")
        library.get_by_text("Get a model from the web").click()
        library.get_by_label("Address").fill("https://evil.example/sepia.safetensors")
        library.get_by_role("button", name="Get it").click()
        toast = there.page.locator(".toasts")
        expect(toast).to_contain_text("fetches nothing from evil.example")
        assert there.said and all("403" in said for said in there.said)
        there.said.clear()  # the browser's own words about the refusal
        toast.get_by_role("button").click()
        library.get_by_label("Address").fill("hf:me/inks/sepia.safetensors")
        library.get_by_label("Address").press("Enter")
        card = library.locator(".download").filter(has_text="sepia").first
        expect(card).to_contain_text("hf:me/inks/sepia.safetensors")
        expect(card).to_contain_text("of 18.9 MB", timeout=60_000)
        there.shot("download")
        card.get_by_role("button", name="Pause").click()
        hub.held.pop(path).set()
        expect(card).to_contain_text("what has come is kept", timeout=60_000)
        card.get_by_role("button", name="Resume").click()
        expect(card.get_by_role("heading", name="sepia.safetensors")).to_be_visible(timeout=60_000)
        expect(_card(there, "sepia")).to_be_visible(timeout=60_000)  # the lists are asked for again by themselves
        assert there.page.evaluate(UNNAMED) == []
        card.get_by_role("button", name="Use").click()
        expect(there.page.locator("#tab-draw textarea").first).to_have_value(re.compile("<lora:sepia:1>"))
        there.tab("library")
        card.get_by_role("button", name="Remove from this list").click()
        expect(library.locator(".download").filter(has_text="sepia")).to_have_count(0)
    (page_folder / "models" / "sepia.safetensors").unlink()


def test_what_is_too_large_to_send_is_said_before_it_is_sent(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        said = there.page.evaluate(
            """async () => (await import("/ui/js/api.js")).submit("generate", { prompt: "x".repeat(34e6) })
                .catch((error) => error.message)"""
        )
    assert said == (
        "This is 34.0 MB with its pictures, and the server takes 33.6 MB at once. Send smaller or fewer pictures."
    )


def test_data_sets_that_are_added_are_seen_without_a_reload(
    page_browser: Browser, page_server: Server, page_folder: Path
) -> None:
    added = page_folder / "data" / "added-late"
    with visit(page_browser, page_server.url) as there:
        tab = there.tab("teach")
        expect(tab.get_by_label("Its name")).to_be_visible()
        tab.get_by_label("Its name").fill("half-typed")
        added.mkdir()
        Image.new("RGB", (64, 64)).save(added / "0.png")
        there.page.evaluate("dispatchEvent(new Event('focus'))")
        expect(tab).to_contain_text("added-late")
        expect(tab.get_by_label("Its name")).to_have_value("half-typed")
        expect(tab.get_by_label("Its name")).to_be_focused()
        there.tab("library")
        shutil.rmtree(added)
        there.tab("teach")
        expect(tab).not_to_contain_text("added-late")


def test_what_does_not_fit_is_grey_and_says_why(page_browser: Browser, page_server: Server) -> None:
    with visit(page_browser, page_server.url) as there:
        there.tab("library")
        expect(_card(there, "canny")).not_to_have_class("card weights wrong")
        expect(_card(there, "minibase")).to_contain_text("a base for conditions")
        there.page.get_by_label("What fits").select_option("mini")
        expect(_card(there, "canny")).to_have_class("card weights wrong")
        expect(_card(there, "canny")).to_contain_text("for diorama, and the model is sd1")
        expect(_card(there, "canny").get_by_role("button", name="Use")).to_have_count(0)


def test_a_data_set_is_sent_examined_estimated_and_a_training_paused(
    page_browser: Browser, page_server: Server, tmp_path: Path
) -> None:
    with visit(page_browser, page_server.url) as there:
        tab = there.tab("teach")
        there.upload(tab.get_by_role("button", name="Send a zip"), _zip(tmp_path / "my pairs.zip"))
        expect(tab.get_by_text("33 files are there as “my-pairs”")).to_be_visible(timeout=60_000)
        expect(tab.get_by_text("1 names that lead out of the folder")).to_be_visible()
        expect(tab.get_by_label("Pairs", exact=True)).to_have_value("my-pairs")
        tab.get_by_label("Model", exact=True).select_option("mini")
        tab.get_by_text("More", exact=True).click()
        tab.get_by_role("spinbutton", name="Pairs in one step").fill("1")
        tab.get_by_role("spinbutton", name="Rank").fill("4")
        tab.get_by_role("spinbutton", name="Steps between two looks").fill("1000")
        tab.get_by_label("Side of the pictures").fill(str(SIZE))
        tab.get_by_role("spinbutton", name="Steps", exact=True).fill("10000")
        tab.get_by_role("button", name="Examine the pairs").click()
        report = tab.locator(".report").first
        expect(report).to_contain_text("10 can be used", timeout=60_000)
        expect(report).to_contain_text("1 cannot")
        report.get_by_text("pictures that cannot be read").click()
        expect(report).to_contain_text("broken")
        tab.get_by_role("button", name="What will it take?").click()
        expect(tab.locator(".report").last).to_contain_text("looks aside", timeout=120_000)
        assert there.page.evaluate(UNNAMED) == []
        there.page.evaluate("scrollTo(0, 0)")
        there.shot("wizard")
        tab.get_by_label("Its name", exact=True).fill("paused")
        tab.get_by_role("button", name="Teach", exact=True).click()
        card = tab.locator(".training").first
        expect(card).to_contain_text("Loss", timeout=120_000)
        there.page.route("**/pause", _answered_late)  # after the stream has told that it is paused
        with there.page.expect_response("**/pause", timeout=60_000):
            card.get_by_role("button", name="Pause").click()
        expect(card).to_have_attribute("data-state", "paused", timeout=60_000)
        card.get_by_role("button", name="Resume").click()
        expect(card).to_have_attribute("data-state", "running", timeout=60_000)
        card.get_by_role("button", name="Cancel").click()
        expect(card).to_have_attribute("data-state", "cancelled", timeout=60_000)
        card.get_by_role("button", name="Go on").click()
        expect(card).to_have_attribute("data-state", "running", timeout=60_000)
        card.get_by_role("button", name="Cancel").click()
        expect(card).to_have_attribute("data-state", "cancelled", timeout=60_000)


def test_a_style_is_taught_and_drawn_with(page_browser: Browser, page_server: Server, page_folder: Path) -> None:
    folder = page_folder / "data" / "inks"
    folder.mkdir()
    for i, view in enumerate(views(12, SIZE)):
        view.convert("L").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{CAPTION}, ink")
    with visit(page_browser, page_server.url) as there:
        tab = there.tab("teach")
        tab.get_by_label("What is taught").select_option("lora")
        tab.get_by_label("Its name", exact=True).fill("my-ink")
        tab.get_by_label("Pairs", exact=True).select_option("inks")
        tab.get_by_label("Model", exact=True).select_option("mini")
        tab.get_by_role("spinbutton", name="Steps", exact=True).fill("20")
        tab.get_by_text("More", exact=True).click()
        for name, value in (("Pairs in one step", 1), ("Rank", 4), ("Steps between two looks", 10)):
            tab.get_by_role("spinbutton", name=name).fill(str(value))
        tab.get_by_label("Side of the pictures").fill(str(SIZE))
        tab.get_by_role("button", name="Examine the pairs").click()
        expect(tab.locator(".report").first).to_contain_text("12 can be used", timeout=60_000)
        expect(tab.locator(".report").first).not_to_contain_text("make pairs")  # a style wants none
        tab.get_by_role("button", name="Teach", exact=True).click()
        card = tab.locator(".training", has_text="my-ink, from inks")
        use = card.get_by_role("button", name="Draw with it now")
        expect(use).to_be_visible(timeout=120_000)
        expect(card.locator(".sheet")).to_be_visible()
        assert there.page.evaluate(UNNAMED) == []
        there.tab("library")
        expect(_card(there, "my-ink")).to_be_visible(timeout=60_000)  # the lists are asked for again by themselves
        there.page.reload()
        there.page.locator("#tab-library").wait_for(timeout=60_000)
        there.tab("teach")
        expect(tab.get_by_label("Its name", exact=True)).to_have_value("my-ink")
        expect(tab.get_by_label("What is taught")).to_have_value("lora")
        use.click()
        draw = there.page.locator("#tab-draw")
        expect(draw.get_by_label("Prompt", exact=True)).to_have_value(re.compile("<lora:my-ink:1>"))
        expect(draw.get_by_label("Model", exact=True)).to_have_value("mini")
    job = page_server.submit(
        "generate", {"prompt": "x <lora:my-ink:1>", "model": "mini", "steps": 1, "width": SIZE, "height": SIZE}
    )
    done = page_server.wait(job["id"])
    assert done["state"] == "done" and not done["result"]["warnings"]


def _answered_late(route: Route) -> None:
    response = route.fetch()
    time.sleep(LATE_SECONDS)
    route.fulfill(response=response)


def test_the_queue_is_put_in_order(page_browser: Browser, page_server: Server) -> None:
    page_server.submit("generate", {"prompt": "a long one", "steps": 150, "batch": 8, "seed": 1})
    asked = {"model": "mini", "width": SIZE, "height": SIZE, "steps": 1}
    jobs = [page_server.submit("generate", asked | {"prompt": name})["id"] for name in ("first", "second", "third")]
    with visit(page_browser, page_server.url) as there:
        gallery = there.tab("gallery")
        rows = gallery.locator('.job[data-state="queued"] .what > span:first-child')
        expect(rows).to_have_text(["first", "second", "third"])
        third = gallery.locator(f'.job[data-job="{jobs[2]}"]')
        third.get_by_role("button", name="Earlier").click()
        expect(rows).to_have_text(["first", "third", "second"])
        expect(third.get_by_role("button", name="Earlier")).to_be_focused()
        there.page.keyboard.press("Enter")
        expect(rows).to_have_text(["third", "first", "second"])
        gallery.locator(f'.job[data-job="{jobs[0]}"]').get_by_role("button", name="Later").click()
        expect(rows).to_have_text(["third", "second", "first"])
        there.shot("queue")
        gallery.locator('.job[data-state="running"]').get_by_role("button", name="Cancel").click()
        expect(gallery.locator('.job:not([data-state="failed"])')).to_have_count(0, timeout=60_000)
