"""A server that several files of tests share, since starting it takes longer than most of them; and a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from disegno.backbones import miniature
from disegno.training.miniature import write_base
from kit.hub import Hub, serving_hub
from kit.page import chromium
from kit.pairs import views
from kit.server import Server, start


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small models, and with pictures to teach from."""
    folder = tmp_path_factory.mktemp("rooms")
    models, pictures = folder / "models", folder / "data" / "photos"
    miniature.write_sd1_checkpoint(models / "mini.safetensors")
    write_base(models / "minibase.safetensors")
    pictures.mkdir(parents=True)
    for i, view in enumerate(views(12, 64)):
        view.save(pictures / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def page_hub() -> Iterator[tuple[Hub, str]]:
    """What that server takes for Hugging Face, and its address."""
    with serving_hub() as served:
        yield served


@pytest.fixture(scope="session")
def page_server(page_folder: Path, page_hub: tuple[Hub, str]) -> Iterator[Server]:
    """A server of that folder."""
    where = {"DISEGNO_MODEL_DIRS": str(page_folder / "models"), "DISEGNO_CACHE_DIR": str(page_folder / "cache")}
    there = ("--data-root", str(page_folder / "data"), "--allow-download", page_hub[1].removeprefix("http://"))
    server = start(page_folder / "server", *there, HF_ENDPOINT=page_hub[1], **where).wait_ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")  # its event loop runs while it is open, and other tests want one of their own
def page_browser() -> Iterator[Browser]:
    """A Chromium."""
    with chromium() as opened:
        yield opened
