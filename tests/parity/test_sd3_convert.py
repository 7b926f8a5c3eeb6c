"""Stable Diffusion 3 as one file and as a diffusers folder: there and back bit by bit, opened by the real classes."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from disegno.backbones import miniature_sd3 as mini
from disegno.backbones import sd3
from disegno.core.errors import CorruptFile, KeyMismatch
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.convert import convert
from disegno.weights.identify import identify
from disegno.weights.keys import mmdit
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors
from kit.vocabulary import trained

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
CLASSES = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
BESIDE = ("logit_scale", "clip_l.transformer.text_projection.weight")  # decide nothing: see `layouts._unprojected`
SOME = [(), ("clip_l", "clip_g"), mini.ENCODERS, ("t5",)]


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("encoders", SOME, ids=lambda some: "+".join(some) or "none")
@pytest.mark.parametrize("kind", ["3", "3.5-medium", "3.5-large"])
def test_a_file_goes_to_a_folder_and_back(tmp_path: Path, kind: str, encoders: tuple[str, ...]) -> None:
    made = mini.Sd3(kind=kind)
    source = mini.write_file(tmp_path / "a.safetensors", made, encoders, torch.float16)
    there = convert(source, tmp_path / "folder", "diffusers")
    assert (there.card.kind, there.card.family, there.card.prediction) == ("model", "sd3", "flow")
    assert all(name.endswith(BESIDE) for name in there.left_out)
    parts = {"transformer", "vae", *(FOLDERS[name] for name in encoders)}
    for part in parts:
        _, info = CLASSES[part].from_pretrained(tmp_path / "folder" / part, output_loading_info=True)
        assert not any(info.values()), (part, info)
    assert not any((tmp_path / "folder" / part).exists() for part in CLASSES.keys() - parts)
    back = convert(tmp_path / "folder", tmp_path / "back.safetensors", "ldm")
    assert back.left_out == ()
    assert _same(
        {key: tensor for key, tensor in load_file(source).items() if key not in there.left_out},
        load_file(tmp_path / "back.safetensors"),
    )
    opened = [sd3.open(path, MEMORY) for path in (source, tmp_path / "folder", tmp_path / "back.safetensors")]
    assert all(torch.equal(opened[0].net.state_dict()[k], o.net.state_dict()[k]) for o in opened for k in _names(o))
    states = [model.encode_text(["a cat"]) for model in opened]
    assert all(torch.equal(states[0].tokens, state.tokens) for state in states)
    assert all(state.pooled is not None and torch.equal(state.pooled, states[0].pooled) for state in states)


def _names(model: sd3.Mmdit) -> list[str]:
    return list(model.net.state_dict())


def test_t5s_vocabulary_and_the_shift_go_along(tmp_path: Path) -> None:
    source = mini.write_folder(tmp_path / "folder", tokenizer=trained())
    scheduler = source / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"shift": 5.0}))
    (tmp_path / "models").mkdir()
    file = convert(source, tmp_path / "models" / "one.safetensors", "ldm")
    assert json.loads(file.card.metadata["disegno.config"]) == {"shift": 5.0}
    folder = convert(file.card.path, tmp_path / "again", "diffusers")
    opened = [sd3.open(path, MEMORY) for path in (source, file.card.path, folder.card.path)]
    assert all(model.warnings == [] and model.text.t5 is not None for model in opened)
    assert opened[0].fingerprint == opened[2].fingerprint
    assert all(torch.equal(model.table.sigmas, opened[0].table.sigmas) for model in opened)
    assert torch.equal(opened[0].encode_text(["a cat"]).tokens, opened[2].encode_text(["a cat"]).tokens)


def test_a_part_in_several_files_is_one_part(tmp_path: Path) -> None:
    source = mini.write_folder(tmp_path / "folder", encoders=("t5",))
    whole = convert(source, tmp_path / "whole.safetensors", "ldm")
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder_3", "model")):
        file = source / part / f"{stem}.safetensors"
        tensors = load_file(file)
        halves = [dict(list(tensors.items())[n::2]) for n in (0, 1)]
        names = [f"{stem}-0000{n + 1}-of-00002.safetensors" for n in (0, 1)]
        for name, half in zip(names, halves, strict=True):
            save_safetensors(file.with_name(name), half, {"format": "pt"})
        table = {key: name for name, half in zip(names, halves, strict=True) for key in half}
        file.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        file.unlink()
    split = convert(source, tmp_path / "split.safetensors", "ldm")
    assert _same(load_file(whole.card.path), load_file(split.card.path))


def test_a_projection_of_clip_l_that_does_something_is_said_to_be_lost(tmp_path: Path) -> None:
    source = mini.write_folder(tmp_path / "folder", encoders=("clip_l",))
    file = source / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    save_safetensors(file, tensors | {"text_projection.weight": tensors["text_projection.weight"] * 2}, {})
    done = convert(source, tmp_path / "one.safetensors", "ldm")
    assert done.left_out == ("text_encoder/text_projection.weight",)


def test_the_transformer_alone_is_renamed_and_named_back(tmp_path: Path) -> None:
    original = {mmdit.PREFIX + key: tensor for key, tensor in mmdit.to_original(mini.net_tensors()).items()}
    save_safetensors(tmp_path / "a.safetensors", original, {})
    assert identify(tmp_path / "a.safetensors").kind == "unet"
    there = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert (there.card.kind, there.card.family, there.card.layout) == ("unet", "sd3", "diffusers")
    assert _same(load_file(tmp_path / "b.safetensors"), mini.net_tensors())
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "ldm")
    assert _same(load_file(tmp_path / "c.safetensors"), original)


def test_what_is_broken_is_refused(tmp_path: Path) -> None:
    broken = mini.write_file(tmp_path / "a.safetensors", encoders=(), words={"disegno.config": "{"})
    with pytest.raises(CorruptFile, match="as JSON"):
        convert(broken, tmp_path / "folder", "diffusers")
    tensors = mini.original_tensors(encoders=("t5",))
    bare = {key: tensor for key, tensor in tensors.items() if not key.endswith("shared.weight")}
    save_safetensors(tmp_path / "b.safetensors", bare, {})
    with pytest.raises(KeyMismatch, match="T5 has no tensor"):
        convert(tmp_path / "b.safetensors", tmp_path / "folder", "diffusers")
