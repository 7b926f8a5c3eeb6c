"""The reference page of A1111's API is what its tables say now, and the how-to names what exists."""

import re
from pathlib import Path

import pytest

from disegno.serving.a1111.controlnet import UNIT
from disegno.serving.a1111.extras import BATCH, SINGLE
from disegno.serving.a1111.forms import IMG2IMG, TXT2IMG
from disegno.serving.a1111.reference import reference_page

pytestmark = pytest.mark.docs

DOCS = Path(__file__).parent.parent.parent / "docs"

GET = (
    "cmd-flags embeddings extensions face-restorers hypernetworks latent-upscale-modes loras memory options progress"
    " prompt-styles realesrgan-models samplers schedulers script-info scripts sd-models sd-vae upscalers"
)
POST = (
    "create/embedding create/hypernetwork extra-batch-images extra-single-image img2img interrogate interrupt options"
    " png-info refresh-checkpoints refresh-embeddings refresh-loras refresh-vae reload-checkpoint skip train/embedding"
    " train/hypernetwork txt2img unload-checkpoint"
)
CONTROLNET = (
    "GET version, GET model_list, GET module_list, GET control_types, GET settings, POST detect,"
    " POST render_openpose_json, POST txt2img, POST img2img"
)


def test_the_page_is_up_to_date() -> None:
    written = (DOCS / "reference" / "a1111.md").read_text("utf-8")
    assert written == reference_page(), "write it again: python -m disegno.serving.a1111.reference"


def test_every_route_of_the_program_and_its_extension_is_there() -> None:
    """Those that A1111 has without further flags, and the extension's, the two that it has removed too."""
    routes = [*(("GET", f"/sdapi/v1/{name}") for name in GET.split())]
    routes += [("POST", f"/sdapi/v1/{name}") for name in POST.split()]
    routes += [(method, f"/controlnet/{name}") for method, name in (row.split() for row in CONTROLNET.split(","))]
    page = reference_page()
    assert not [route for route in routes if "| {} | `{}` |".format(*route) not in page]


@pytest.mark.parametrize("table", [TXT2IMG, IMG2IMG, UNIT, BATCH], ids=["txt2img", "img2img", "unit", "extras"])
def test_every_field_says_what_it_does(table: tuple[object, ...]) -> None:
    silent = [row for row in table if not (row.to or row.unused or row.means)]  # pyright: ignore
    assert not silent


def test_the_how_to_names_routes_that_exist() -> None:
    page = reference_page()
    text = (DOCS / "howto" / "a1111-clients.md").read_text("utf-8")
    routes = set(re.findall(r"`(?:GET |POST )?(/(?:sdapi|controlnet|internal)/[a-z0-9_/-]+)`", text))
    assert routes
    assert all(f"`{route}`" in page for route in routes)


def test_the_names_are_unique() -> None:
    for table in (TXT2IMG, IMG2IMG, UNIT, SINGLE, BATCH):
        names = [row.name for row in table]
        assert len(names) == len(set(names))
