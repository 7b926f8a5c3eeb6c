"""The page on adding a backbone is followed, word for word, in a package of its own."""

import re
import sys
from pathlib import Path

import pytest
import torch

from disegno.backbones import BACKBONES
from disegno.backbones.miniature import write_sd1_folder
from disegno.core.registry import Registry
from disegno.memory import FULL_PRECISION, Memory

pytestmark = pytest.mark.docs

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "add-a-backbone.md").read_text("utf-8")


def _block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return next(block for block in blocks if containing in block)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return the registry as it is with the page's package installed."""
    site, name = tmp_path / "site", "tiny_pictures"
    installed = site / f"{name}-1.0.dist-info"
    installed.mkdir(parents=True)
    (site / f"{name}.py").write_text(_block("python", "FAMILY"), "utf-8")
    entry = _block("toml", "disegno.backbones").replace(
        '[project.entry-points."disegno.backbones"]', "[disegno.backbones]"
    )
    (installed / "entry_points.txt").write_text(entry.replace('"', ""), "utf-8")
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return Registry(BACKBONES.what, BACKBONES.package, BACKBONES.group, BACKBONES.not_members)


def test_the_page_gives_a_backbone_that_opens(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"tiny-pictures", "sd1", "diorama"} <= set(registry)
    monkeypatch.setattr("disegno.backbones.BACKBONES", registry)
    scope: dict[str, object] = {}
    exec(_block("python", "BACKBONES.load"), scope)
    backbone = scope["module"].open(write_sd1_folder(tmp_path / "model"), Memory(FULL_PRECISION))  # pyright: ignore
    assert (backbone.family, backbone.defaults.width) == ("tiny-pictures", 64)
    assert backbone.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 64, 64)


def test_every_file_that_the_page_names_is_there() -> None:
    root = Path(__file__).parents[2]
    for name in re.findall(r"`((?:disegno|tests)/[\w/]+\.py)`", PAGE):
        assert (root / name).is_file() or (root / "src" / name).is_file(), name
