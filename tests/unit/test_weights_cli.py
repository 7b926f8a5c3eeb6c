"""`disegno models`: list, show, convert and verify."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from disegno.cli.main import main
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

PAIR = {
    "lora_unet_x_attn2_to_k.lora_down.weight": torch.ones(4, 768),
    "lora_unet_x_attn2_to_k.lora_up.weight": torch.ones(320, 4),
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(tmp_path / "m"))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def _run(*words: str) -> Result:
    return CliRunner().invoke(main, ["models", *words])


def test_an_empty_library_says_where_it_looked(models: Path) -> None:
    result = _run("list")
    assert result.exit_code == 0
    assert str(models) in result.output


def test_list_and_show(models: Path) -> None:
    save_safetensors(models / "line.safetensors", PAIR, {"note": "\x1b[2Jred"})
    (models / "broken.ckpt").write_bytes(b"<html>404 not found</html>")
    line, *others = json.loads(_run("list", "--kind", "lora", "--json").output)
    assert not line["shipped"] and all(each["shipped"] for each in others)
    assert (line["family"], line["rank"], line["num_tensors"]) == ("sd1", 4, 2)
    assert "broken.ckpt" in _run("list").output
    shown = _run("show", "line").output
    assert "\x1b" not in shown
    assert json.loads(_run("show", "line", "--json").output)["metadata"] == {"note": "\x1b[2Jred"}


def test_what_came_with_the_built_in_model_is_listed_and_shown(models: Path) -> None:
    assert "shipped" in _run("list", "--kind", "control").output
    shipped = [each["name"] for each in json.loads(_run("list", "--json").output)]
    assert {"canny", "segmentation"} <= set(shipped)
    assert json.loads(_run("show", "canny", "--json").output)["family"] == "diorama"


def test_convert_writes_safetensors(models: Path, tmp_path: Path) -> None:
    torch.save(PAIR | {"epoch": 3}, models / "line.pt")
    result = _run("convert", "line", str(tmp_path / "out.safetensors"))
    assert result.exit_code == 0, result.output
    assert "left out: epoch" in result.output
    assert load_file(tmp_path / "out.safetensors").keys() == PAIR.keys()


def test_verify_reads_every_number(models: Path) -> None:
    save_safetensors(models / "good.safetensors", PAIR, {})
    save_safetensors(models / "bad.safetensors", PAIR | {"x.alpha": torch.tensor([float("nan")])}, {})
    good = _run("verify", "good")
    assert good.exit_code == 0
    assert "sound, sha256 " in good.output
    assert _run("verify", "good", "--sha256", "0000").exit_code == 3
    bad = _run("verify", "bad")
    assert bad.exit_code == 3
    assert "x.alpha" in bad.output


def test_an_unknown_file_is_one_clear_line(models: Path) -> None:
    save_safetensors(models / "line.safetensors", PAIR, {})
    result = _run("show", "lime")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "line" in result.output


def test_the_command_loads_no_torch() -> None:
    code = "import sys, disegno.cli.models; sys.exit('torch' in sys.modules or 'rich.table' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
