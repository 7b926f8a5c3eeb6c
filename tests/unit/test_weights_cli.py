"""`disegno models`: list, show, convert and verify."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from disegno.backbones.miniature import write_sd1_folder
from disegno.cli.main import main
from disegno.core.errors import CorruptFile
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors
from disegno.weights.verify import require_parts

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
    (models / "broken.ckpt").write_bytes(b"<html>404 not found</html>")
    assert "No files of the kind vae found" in _run("list", "--kind", "vae").output


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
    assert {"canny", "segmentation", "reference-only", "tile-colorfix"} <= set(shipped)
    assert json.loads(_run("show", "canny", "--json").output)["family"] == "diorama"


def test_convert_writes_safetensors(models: Path, tmp_path: Path) -> None:
    torch.save(PAIR | {"epoch": 3}, models / "line.pt")
    result = _run("convert", "line", str(tmp_path / "out.safetensors"))
    assert result.exit_code == 0, result.output
    assert "left out: epoch" in result.output
    assert load_file(tmp_path / "out.safetensors").keys() == PAIR.keys()


def test_convert_writes_no_file_that_nobody_finds(models: Path, tmp_path: Path) -> None:
    (given := tmp_path / "photo.png").write_bytes(b"a photo")
    result = _run("convert", "canny", str(given))
    assert result.exit_code == 2 and ".safetensors, .sft, .ckpt" in result.output
    assert given.read_bytes() == b"a photo"


def test_a_whole_model_is_no_folder_where_a_file_lies(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    assert _run("convert", str(folder), str(file), "--to", "ldm").exit_code == 0
    result = _run("convert", str(file), str(file), "--to", "diffusers")
    assert result.exit_code == 4 and "Choose another folder" in result.output


def test_a_name_that_is_none_is_told_the_near_ones(models: Path) -> None:
    assert "Choose one of: canny." in _run("show", "cany").output


def test_a_table_for_other_programs_has_a_line_for_each_row(models: Path) -> None:
    save_safetensors(models / f"{'a' * 90}.safetensors", PAIR, {})
    (line,) = (line for line in _run("list").output.splitlines() if "sd1" in line)
    assert line.split()[0] == f"{'a' * 90}.safetensors" and "lora" in line


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder of a whole model."""
    return write_sd1_folder(tmp_path_factory.mktemp("whole") / "mini")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "mini"))


def _sharded(folder: Path, first: int) -> list[Path]:
    """Return the unet's two files of weights, in the place of one; of them the first has `first` tensors."""
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names, where, files = list(tensors), dict[str, str](), list[Path]()
    for part in (names[:first], names[first:]):
        files.append(file.with_stem(f"{file.stem}-{len(files) + 1:05}-of-00002"))
        save_safetensors(files[-1], {name: tensors[name] for name in part}, {})
        where |= dict.fromkeys(part, files[-1].name)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": where}))
    return files


def test_verify_reads_every_network_of_a_folder(folder: Path) -> None:
    shards = _sharded(folder, 10)
    done = _run("verify", str(folder))
    lines = [line for line in done.output.splitlines() if "sound, sha256 " in line]
    assert done.exit_code == 0 and len(lines) == 5, done.output
    assert all(str(shard) in done.output for shard in shards)
    own = lines[-1].rpartition(" ")[2]
    assert _run("verify", str(folder), "--sha256", own[:12]).exit_code == 0
    assert _run("verify", str(folder), "--sha256", "abc").exit_code == 3


def test_verify_finds_what_a_folder_lacks(folder: Path) -> None:
    one, two = _sharded(folder, 10)
    kept = load_file(one)
    kept.popitem()
    save_safetensors(one, kept, {})
    assert _run("verify", str(folder)).exit_code == 3
    two.unlink()
    assert two.name in _run("verify", str(folder)).output
    for file in (folder / "unet").glob("*model*"):
        file.unlink()
    done = _run("verify", str(folder))
    assert done.exit_code == 3 and "unet has no weights" in done.output
    with pytest.raises(CorruptFile, match="unet has no weights"):  # as the server's own verifying asks
        require_parts(identify(folder))


def test_verify_reads_torch_s_files_of_a_folder(folder: Path) -> None:
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    torch.save(tensors | {name: tensors[name] * float("nan")}, file.with_suffix(".bin"))
    assert _run("verify", str(folder)).exit_code == 0  # the loader reads the other one
    file.unlink()
    done = _run("verify", str(folder))
    assert done.exit_code == 3 and "mini/vae holds NaN" in done.output and name in done.output


def test_verify_wants_all_that_a_model_of_the_built_in_kind_names(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(
        json.dumps({"family": "diorama", "conditions": {"canny": "canny.safetensors"}})
    )
    for name in ("unet", "vae", "text"):
        save_safetensors(tmp_path / f"{name}.safetensors", PAIR, {})
    assert "canny.safetensors cannot be opened" in _run("verify", str(tmp_path)).output
    save_safetensors(tmp_path / "canny.safetensors", PAIR, {})
    assert _run("verify", str(tmp_path)).exit_code == 0


def test_an_unknown_file_is_one_clear_line(models: Path) -> None:
    save_safetensors(models / "line.safetensors", PAIR, {})
    result = _run("show", "lime")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "line" in result.output


def test_the_command_loads_no_torch() -> None:
    code = "import sys, disegno.cli.models; sys.exit('torch' in sys.modules or 'rich.table' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
