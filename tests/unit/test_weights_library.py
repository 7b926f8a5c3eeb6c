"""The library: found in any layout, looked up by any name, never stopped by a bad file."""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from disegno.core.errors import CorruptFile, RequestError, UnknownName
from disegno.core.files import path_of
from disegno.core.settings import Settings
from disegno.weights.card import FileCard
from disegno.weights.identify import identify
from disegno.weights.library import Library
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit


def _headers() -> ModuleType:
    path = Path(__file__).parents[1] / "corpus" / "headers.py"
    spec = importlib.util.spec_from_file_location("headers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["headers"] = module
    spec.loader.exec_module(module)
    return module


headers = _headers()


def _library(tmp_path: Path, *folders: str) -> Library:
    return Library(Settings(model_dirs=tuple(tmp_path / f for f in folders or ("m",)), cache_dir=tmp_path / "cache"))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Return a folder whose `m` has one of each, in ComfyUI's layout."""
    headers.write_header(tmp_path / "m/checkpoints/Dream.safetensors", headers.model())
    headers.write_header(tmp_path / "m/controlnet/sd15/canny.pth", headers.controlnet())
    headers.write_header(tmp_path / "m/loras/canny.safetensors", headers.lora(modules=2))
    headers.write_header(tmp_path / "m/upscale_models/esrgan.pth", {"body.conv_first.weight": (64, 3, 3, 3)})
    folder = tmp_path / "m/diffusers/photo"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "unet/config.json").write_text('{"cross_attention_dim": 768}')
    save_safetensors(folder / "unet/diffusion_pytorch_model.safetensors", {"w": torch.ones(1)}, {})
    (tmp_path / "m/broken.ckpt").write_bytes(b"<html>404 not found</html>")
    for name in (".hidden.ckpt", "half.safetensors.part", "notes.txt"):
        (tmp_path / "m" / name).write_bytes(b"x" * 100)
    return tmp_path


def test_every_file_has_a_card_and_no_file_is_fatal(full: Path) -> None:
    cards = {card.path.name: card.kind for card in _library(full).cards()}
    assert cards == {
        "Dream.safetensors": "model",
        "photo": "model",
        "canny.pth": "control",
        "canny.safetensors": "lora",
        "esrgan.pth": "unknown",
        "broken.ckpt": "broken",
    }
    (broken,) = _library(full).cards("broken")
    assert "web page" in broken.problem


@pytest.mark.parametrize(
    "name",
    [
        "dream",
        "Dream.safetensors",
        "checkpoints/dream.safetensors",
        "checkpoints/Dream",
        "Dream.safetensors [6ce0161689]",
    ],
)
def test_a_file_is_found_by_any_of_its_names(full: Path, name: str) -> None:
    assert _library(full).find(name, "model").path.name == "Dream.safetensors"


def test_files_that_are_called_alike_are_told_apart(full: Path) -> None:
    headers.write_header(full / "m/loras/old/canny.safetensors", headers.lora(modules=1))
    library = _library(full)
    shown = library.shown_names(library.cards("lora"))
    assert shown == ["loras/canny.safetensors", "loras/old/canny.safetensors"]
    assert [library.find(name, "lora").path.parent.name for name in shown] == ["loras", "old"]


def test_a_name_that_two_files_have_is_refused_with_names_that_tell_them_apart(full: Path) -> None:
    headers.write_header(full / "m/old/dream.ckpt.safetensors", headers.lora(modules=1))
    headers.write_header(full / "m/other/dream.safetensors", headers.model(1024))
    library = _library(full)
    with pytest.raises(RequestError) as refused:
        library.find("dream", "model")
    said = str(refused.value)
    assert "2 files named 'dream'" in said and "sha256" in said
    shown = [name for name in ("checkpoints/Dream.safetensors", "other/dream.safetensors") if name in said]
    assert [library.find(name, "model").path.parent.name for name in shown] == ["checkpoints", "other"]
    assert library.called(library.cards("model")) == [*shown, "photo"]
    hashed = library.sha256(library.find(shown[1], "model"))
    assert library.find(f"dream.safetensors [{hashed[:10]}]", "model").path.parent.name == "other"
    with pytest.raises(RequestError, match="2 files named"):
        library.find("Dream.safetensors [0123456789]", "model")


def test_of_files_of_one_stem_the_whole_name_means_one_and_a_title_none(full: Path) -> None:
    headers.write_header(full / "m/canny.safetensors", headers.lora(modules=1), {"ss_output_name": "canny-2"})
    headers.write_header(full / "m/canny-2.pth", headers.lora(modules=1), {})
    library = _library(full)
    assert library.find("canny.safetensors", "lora").path.parent.name == "m"  # as it lies there: the path below
    assert library.find("canny-2", "lora").path.suffix == ".pth"  # a stem comes before a title


def test_copies_of_a_file_are_one(full: Path) -> None:
    source = full / "m/checkpoints/Dream.safetensors"
    (full / "m/dream.safetensors").write_bytes(source.read_bytes())
    (full / "m/linked").mkdir()
    (full / "m/linked/dream.safetensors").symlink_to(source)
    assert _library(full).find("DREAM", "model").kind == "model"
    shutil.copy(source, full / "two.safetensors")
    headers.write_header(full / "again/checkpoints/Dream.safetensors", headers.model(1024))
    with pytest.raises(RequestError, match=r"again/checkpoints/Dream\.safetensors, m/checkpoints/Dream"):
        _library(full, "m", "again").find("checkpoints/Dream.safetensors", "model")


def test_files_that_lie_alike_in_two_folders_have_names_that_find_them(tmp_path: Path) -> None:
    for n, folder in enumerate(("a/models", "b/models", "models")):
        headers.write_header(tmp_path / folder / "loras/x.safetensors", headers.lora(modules=n + 1))
    library = _library(tmp_path, "a/models", "b/models", "models")
    cards = library.cards("lora")
    called = ["a/models/loras/x.safetensors", "b/models/loras/x.safetensors"]
    called.append(f"{tmp_path.name}/models/loras/x.safetensors")
    assert library.called(cards) == library.shown_names(cards) == called
    assert [library.find(name, "lora") for name in called] == cards
    with pytest.raises(RequestError, match="3 files named"):
        library.find("loras/x.safetensors", "lora")
    # what lies somewhere comes before what a folder is told apart by
    headers.write_header(tmp_path / "models/a/models/loras/x.safetensors", headers.lora(modules=4))
    assert library.find(called[0], "lora").path == tmp_path / "models" / called[0]


def test_a_model_of_hugging_faces_cache_has_its_own_name(full: Path) -> None:
    hub = full / "m/hub/models--runwayml--stable-diffusion-v1-5/snapshots"
    hub.mkdir(parents=True)
    (full / "m/diffusers/photo").rename(hub / "451f4fe16113bff5a5d2269ed5ad43b0592e9a14")
    library = _library(full)
    card = library.find("runwayml/stable-diffusion-v1-5", "model")
    assert card.path.parent == hub and card.name in library.shown_names(library.cards("model"))
    assert card.called == "runwayml/stable-diffusion-v1-5" in library.called(library.cards("model"))


def test_a_name_is_looked_up_within_its_kind(full: Path) -> None:
    library = _library(full)
    assert library.find("canny", "control").path.suffix == ".pth"
    assert library.find("canny", "lora").path.suffix == ".safetensors"
    assert library.find(str(full / "m/loras/canny.safetensors"), "lora").kind == "lora"


def test_a_file_is_found_by_its_hash_which_is_kept(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = full / "m/loras/canny.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert _library(full).find(digest[:10].upper(), "lora").path == path
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert _library(full).find(digest[:8], "lora").path == path


def test_a_folder_whose_weights_were_replaced_has_another_hash(full: Path) -> None:
    library, weights = _library(full), full / "m/diffusers/photo/unet/diffusion_pytorch_model.safetensors"
    first = library.known_sha256(library.find("photo", "model"))
    save_safetensors(weights, {"w": torch.zeros(1)}, {})
    os.utime(weights, ns=(1 << 61, 1 << 61))
    assert library.known_sha256(library.find("photo", "model")) != first
    card = library.find("dream", "model")
    card.path.unlink()
    assert library.known_sha256(card) is None


def test_many_hashes_are_written_at_once_without_files_that_are_gone(tmp_path: Path) -> None:
    paths = [headers.write_header(tmp_path / f"m/{n}.safetensors", headers.lora(modules=1)) for n in range(9)]
    library, written = _library(tmp_path), tmp_path / "cache/library.json"
    cards = library.cards()
    before = written.stat().st_ino
    hashes = [library.sha256(card) for card in cards]
    assert len(set(hashes)) == 1 and written.stat().st_ino == before
    paths[0].unlink()
    library.cards()
    kept = json.loads(written.read_text())
    assert len(kept["cards"]) == len(kept["hashes"]) == 8 and str(paths[0]) not in kept["hashes"]


def test_an_unknown_name_lists_near_ones(full: Path) -> None:
    with pytest.raises(UnknownName, match=r"no control named 'cany'.*canny"):
        _library(full).find("cany", "control")


@pytest.mark.parametrize("name", ["~\0", "x" * 5000, "~nobody-of-this-machine/model"])
def test_what_can_be_no_path_is_no_path(name: str, full: Path) -> None:
    assert path_of(name) is None
    with pytest.raises(UnknownName):
        _library(full).find(name, "model")


def test_a_file_of_another_kind_and_a_broken_file_say_so(full: Path) -> None:
    with pytest.raises(UnknownName, match="is a file of the kind 'model', not 'control'"):
        _library(full).find("dream", "control")
    with pytest.raises(CorruptFile, match="web page"):
        _library(full).find("broken", "model")


def test_a_changed_file_is_looked_at_again(full: Path) -> None:
    library = _library(full)
    assert library.find("dream", "model").family == "sd1"
    path = headers.write_header(full / "m/checkpoints/Dream.safetensors", headers.model(2048))
    os.utime(path, ns=(1, 1))
    assert library.find("dream", "model").family == "sdxl"


def test_the_folder_of_another_program_is_entered_at_its_models(tmp_path: Path) -> None:
    """A1111's layout: its pictures and its Python environment are not searched."""
    for name in ("models/Stable-diffusion/a", "models/ControlNet/b", "embeddings/c", "venv/lib/d", "outputs/e"):
        headers.write_header(tmp_path / f"{name}.safetensors", headers.lora(modules=1))
    assert [card.name for card in _library(tmp_path, ".").cards()] == ["a", "b", "c"]


def test_another_programs_description_hides_no_file(full: Path) -> None:
    (full / "m/loras/model.json").write_text('{"modelTopology": {}, "weightsManifest": []}')
    assert "canny.safetensors" in [card.path.name for card in _library(full).cards("lora")]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    headers.write_header(tmp_path / "m/a.safetensors", headers.lora(modules=1))
    (tmp_path / "m/again").symlink_to(tmp_path / "m")
    assert len(_library(tmp_path).cards()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "cards": [[1, 2]], "hashes": {}}'])
def test_a_damaged_index_counts_as_none(full: Path, text: str) -> None:
    (full / "cache").mkdir()
    (full / "cache/library.json").write_text(text)
    assert len(_library(full).cards()) == 6
    assert json.loads((full / "cache/library.json").read_text())["version"] == 2


def test_a_file_that_nobody_foresaw_hides_no_other(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers.write_header(full / "m/union.safetensors", {"task_embedding": (), "a.attn2.to_k.weight": ()})
    cards = {card.path.name: card for card in _library(full).cards()}
    assert len(cards) == 7 and cards["union.safetensors"].mechanism == "controlnet-union"

    def stumble(path: Path) -> FileCard:
        if path.name == "union.safetensors":
            raise IndexError("tuple index out of range")
        return identify(path)

    monkeypatch.setattr("disegno.weights.library.identify", stumble)
    (full / "cache/library.json").unlink()
    again = {card.path.name: card for card in _library(full).cards()}
    assert again.keys() == cards.keys() and again["union.safetensors"].kind == "broken"
    assert "IndexError" in again["union.safetensors"].problem


def test_what_could_not_be_opened_is_opened_when_it_can_be(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, path = os.open, str(full / "m/checkpoints/Dream.safetensors")

    def forbidden(name: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(name) == path:
            raise PermissionError(13, "Permission denied")
        return opened(name, flags, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forbidden)
        library = _library(full)
        (broken,) = (card for card in library.cards() if str(card.path) == path)
        assert broken.kind == "broken" and "Permission denied" in broken.problem
    assert library.find("dream", "model").family == "sd1"  # nobody has changed the file
    assert _library(full).find("dream", "model").family == "sd1"


def test_another_version_of_the_program_looks_at_files_itself_and_keeps_their_hashes(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, index = _library(full), full / "cache/library.json"
    digest = library.sha256(library.find("dream", "model"))
    library.find("dream", "model")
    table = json.loads(index.read_text())
    table["cards"] = [[stamp, card | {"kind": "unknown"}] for stamp, card in table["cards"]]
    index.write_text(json.dumps(table))
    assert {card.kind for card in _library(full).cards()} == {"unknown"}
    index.write_text(json.dumps(table | {"program": "0.0.1"}))
    later = _library(full)
    card = later.find("dream", "model")
    monkeypatch.setattr(type(card), "sha256", lambda _: pytest.fail("it is known"))
    assert later.sha256(card) == digest


def test_a_folder_that_is_missing_or_cannot_keep_an_index_is_no_error(full: Path) -> None:
    (full / "cache").write_text("a file where the folder should be")
    assert len(_library(full, "m", "missing").cards()) == 6


def test_a_thousand_files_are_listed_in_two_seconds(tmp_path: Path) -> None:
    """Cold; then from the index. Processor time, so that a busy machine does not decide."""
    shapes = headers.lora(modules=32)
    for number in range(1000):
        headers.write_header(tmp_path / f"m/{number}.safetensors", shapes)
    begin = time.process_time()
    assert len(_library(tmp_path).cards("lora")) == 1000
    cold, begin = time.process_time() - begin, time.process_time()
    assert len(_library(tmp_path).cards("lora")) == 1000
    assert cold < 2
    assert time.process_time() - begin < 0.5


def test_many_names_are_found_in_one_look_at_the_folders(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, looks = _library(full), list[str]()
    look = library.cards
    monkeypatch.setattr(library, "cards", lambda *given: looks.append("") or look(*given))
    found = library.find_all(["canny", "CANNY.safetensors", "loras/canny"], "lora")
    assert {card.path.parent.name for card in found.values()} == {"loras"} and len(found) == 3 and len(looks) == 1
    with pytest.raises(UnknownName, match="nowhere"):
        library.find_all(["canny", "nowhere"], "lora")
