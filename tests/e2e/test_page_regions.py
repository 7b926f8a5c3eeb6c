"""The page's regions: words for parts of the picture, in boxes of numbers or painted."""

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from kit.page import UNNAMED, picture_of, shown_job, visit
from kit.server import Server

pytestmark = pytest.mark.e2e


def _request(server: Server, job_id: str) -> Any:
    return server.get(f"/v1/jobs/{job_id}/request")["request"]


def test_regions_are_written_boxed_painted_and_come_back_from_a_picture(
    page_browser: Browser, page_server: Server
) -> None:
    with visit(page_browser, page_server.url) as there:
        draw = there.page.locator("#tab-draw")
        prompt = draw.get_by_label("Prompt", exact=True)
        prompt.fill("a street")
        draw.get_by_text("Regions", exact=True).click()
        draw.get_by_role("button", name="Add a region").click()
        words = draw.get_by_label("Words of region 1")
        expect(words).to_be_focused()
        prompt.press("Control+Enter")
        expect(there.page.get_by_role("alert")).to_contain_text("Region 1 has no words yet")
        words.fill("a red car")
        first = draw.get_by_role("region", name="Region 1")
        first.get_by_label("Width, %").fill("60")
        first.get_by_label("Width, %").press("Tab")
        first.get_by_label("From the left, %").fill("50")  # further to the right it is less wide
        first.get_by_label("From the left, %").press("Tab")
        expect(first.get_by_label("Width, %")).to_have_value("50")
        draw.get_by_role("button", name="Add a region").click()
        draw.get_by_label("Words of region 2").fill("a green tree")
        second = draw.get_by_role("region", name="Region 2")
        second.get_by_role("button", name="Paint where it holds").click()
        canvas = draw.get_by_label("Drawing board")
        canvas.press("r")  # a box
        there.stroke(canvas, (0.05, 0.05), (0.5, 0.95))
        expect(second.get_by_alt_text("Where the words hold")).to_be_visible()
        expect(second.get_by_label("Width, %")).to_have_count(0)
        second.get_by_role("spinbutton", name="Weight").fill("1.5")
        assert there.page.evaluate(UNNAMED) == []
        prompt.press("Control+Enter")
        job = shown_job(draw)
        asked = _request(page_server, job)
        box, painted = asked["regions"]
        assert (box["prompt"], box["x"], box["w"], box["y"], box["h"]) == ("a red car", 0.5, 0.5, 0, 1)
        assert (painted["prompt"], painted["weight"], asked["base_weight"]) == ("a green tree", 1.5, 0.2)
        mask = picture_of(painted["mask"]).convert("L")
        assert [mask.getpixel((x * mask.width // 10, mask.height // 2)) for x in (2, 8)] == [255, 0]
        there.page.reload()
        expect(words).to_have_value("a red car")
        done = page_server.wait(job)
        png = page_server.ask("GET", done["result"]["files"][0]["url"]).content
        draw.get_by_role("button", name="Remove region 1").click()
        expect(draw.get_by_label("Words of region 1")).to_have_value("a green tree")
        there.drop("#tab-draw .desk", "x.png", png)
        expect(words).to_have_value("a red car")
        expect(draw.get_by_role("region", name="Region 2").get_by_alt_text("Where the words hold")).to_be_visible()
