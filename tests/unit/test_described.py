"""Descriptions of networks that strangers wrote: whatever is wrong with one is said in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disegno.backbones import BACKBONES, miniature, miniature_sd2, miniature_sd3, miniature_sdxl
from disegno.core.errors import ModelFileError
from disegno.memory import FULL_PRECISION, Memory

FOLDERS: dict[str, Callable[[Path], Path]] = {
    "sd1": miniature.write_sd1_folder,
    "sd2": miniature_sd2.write_folder,
    "sdxl": miniature_sdxl.write_folder,
    "sd3": miniature_sd3.write_folder,
}
WRONG: tuple[tuple[str, str, Any], ...] = (
    *(("text_encoder", name, value) for name, value in (("hidden_size", "x"), ("num_attention_heads", 0))),
    *(("text_encoder", name, value) for name, value in (("hidden_act", "none"), ("intermediate_size", None))),
    *(("vae", name, value) for name, value in (("block_out_channels", 3), ("down_block_types", ["Unheard"]))),
    *(("net", name, value) for name, value in (("num_layers", "two"), ("block_out_channels", "wide"))),
    ("net", "in_channels", [4]),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family, write in FOLDERS.items():
        write(root / family)
    return root


OF_TRANSFORMERS, OF_UNETS = ("num_layers",), ("block_out_channels",)
CASES = [
    (family, *wrong)
    for wrong in WRONG
    for family in FOLDERS
    if wrong[0] != "net" or wrong[1] not in (OF_UNETS if family == "sd3" else OF_TRANSFORMERS)
]


@pytest.mark.parametrize(("family", "part", "field", "value"), CASES)
def test_a_wrong_description_is_an_error_about_the_file(
    folders: Path, family: str, part: str, field: str, value: object
) -> None:
    name = {"net": "transformer" if family == "sd3" else "unet"}.get(part, part)
    path = folders / family / name / "config.json"
    whole = path.read_text("utf-8")
    told = json.loads(whole)
    assert field in told or part != "net"
    path.write_text(json.dumps(told | {field: value}), "utf-8")
    try:
        with pytest.raises(ModelFileError) as error:
            BACKBONES.load(family).open(folders / family, Memory(FULL_PRECISION))
    finally:
        path.write_text(whole, "utf-8")
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)
