"""The page in a real Chromium, before a real `disegno serve`: what the tests of the page start from."""

import os
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
ROOT = Path(__file__).parent.parent.parent
CAR = ROOT / "src/disegno/data/diorama/examples/car_512.png"
SHOTS = ROOT / "docs/page" if os.environ.get("DISEGNO_SCREENSHOTS") else None


@contextmanager
def chromium() -> Iterator[Browser]:
    """Give a browser. Skips where the machine has none."""
    if not CHROMIUM:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


# Returns what a screen reader could not name.
UNNAMED = """() => [...document.querySelectorAll('button, a[href], input, select, textarea, canvas[tabindex]')]
    .filter((e) => e.offsetParent && !e.getAttribute('aria-label') && !e.labels?.length && !e.textContent.trim())
    .map((e) => e.outerHTML.slice(0, 120))"""

# Scrolls down and returns the longest time between two frames, in milliseconds.
SCROLL = """async () => {
    let longest = 0, last = performance.now(), going = true;
    const watch = (now) => {
        longest = Math.max(longest, now - last);
        last = now;
        if (going) requestAnimationFrame(watch);
    };
    requestAnimationFrame(watch);
    for (let n = 0; n < 80; n += 1) {
        scrollBy(0, innerHeight);
        await new Promise((resolve) => setTimeout(resolve, 25));
    }
    going = false;
    return Math.round(longest);
}"""


@dataclass
class Visit:
    """A person's visit to the page. `said`: errors of the console; `strangers`: addresses of other hosts."""

    page: Page
    url: str
    said: list[str] = field(default_factory=list[str])
    strangers: list[str] = field(default_factory=list[str])

    def tab(self, name: str) -> Any:
        """Go to a tab; return what is in it."""
        self.page.locator(f'#tabs a[data-tab="{name}"]').click()
        return self.page.locator(f"#tab-{name}")

    def upload(self, opener: Any, path: Path) -> None:
        """Choose a file after a click on `opener`."""
        with self.page.expect_file_chooser() as chooser:
            opener.click()
        chooser.value.set_files(str(path))

    def drop(self, selector: str, name: str, content: bytes, media_type: str = "image/png") -> None:
        """Drop a file on an element."""
        self.page.evaluate(
            """([selector, name, type, body]) => {
                const data = new DataTransfer();
                const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
                data.items.add(new File([bytes], name, { type }));
                const target = document.querySelector(selector);
                for (const kind of ["dragover", "drop"]) {
                    target.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
                }
            }""",
            [selector, name, media_type, b64encode(content).decode()],
        )

    def stroke(self, canvas: Any, *points: tuple[float, float]) -> None:
        """Draw with the mouse: points as shares of the canvas."""
        box = canvas.bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def shot(self, name: str) -> None:
        """Keep a picture of the page in docs/page, where the environment's DISEGNO_SCREENSHOTS says so."""
        if SHOTS is not None:
            SHOTS.mkdir(exist_ok=True)
            shown = Image.open(BytesIO(self.page.screenshot())).convert("RGB")
            shown.quantize(192).save(SHOTS / f"{name}.png", optimize=True)


@contextmanager
def visit(browser: Browser, url: str, path: str = "/", **options: Any) -> Iterator[Visit]:
    """Open the page; afterwards there must be no error in its console, and no address of another host."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    page = context.new_page()
    page.set_default_timeout(20_000)
    there = Visit(page, url)
    page.on("console", lambda said: there.said.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: there.said.append(str(error)))
    page.on("request", lambda asked: there.strangers.append(asked.url) if _is_strange(asked.url, url) else None)
    page.goto(url + path)
    page.locator("#tab-draw").wait_for(timeout=60_000)
    yield there
    assert not there.said, there.said
    assert not there.strangers, there.strangers
    context.close()


def _is_strange(address: str, url: str) -> bool:
    return not address.startswith((url, "data:", "blob:"))


def picture_of(uri: str) -> Image.Image:
    """Return the picture of a data URI."""
    return Image.open(BytesIO(b64decode(uri.partition(",")[2]))).convert("RGB")


def shown_job(tab: Any) -> str:
    """Return the id of the job whose picture a tab's stage shows, once it has been drawn."""
    image = tab.locator('.stage-frame > img[src^="/v1/jobs/"]')
    expect(image).to_be_visible(timeout=60_000)
    expect(tab.locator(".stage-progress")).to_have_count(0, timeout=60_000)
    return image.get_attribute("src").split("/")[3]


def fill_gallery(folder: Path) -> None:
    """Write a thousand pictures of ended jobs into the folder of a server, which may run."""
    from disegno.serving.files import Files
    from disegno.serving.store import New, Store
    from disegno.serving.words import Outcome, StoredFile

    files = Files(folder)
    files.prepare()
    store = Store(f"sqlite:///{folder / 'jobs.sqlite'}")
    content = CAR.read_bytes()
    (source := folder / "picture.png").write_bytes(content)
    for n in range(250):
        job, _ = store.add(New("local", "generate", b"{}", str(n), "diorama"))
        store.claim(job.id)
        kept = tuple(StoredFile(f"{i}.png", "image", "image/png", len(content), "0" * 64) for i in range(4))
        store.publish(
            job.id, 1, Outcome(kept, (), {"request": {"prompt": f"picture {n}"}, "seeds": ["1", "2", "3", "4"]})
        )
        files.result(job.id).mkdir()
        for file in kept:
            (files.result(job.id) / file.name).hardlink_to(source)
    store.close()
