"""Files in another form: every tensor keeps its bits, and the classes of diffusers and transformers open the result."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from disegno.backbones.miniature import WHOLE, Layout, write_sd1_checkpoint
from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.convert import convert
from disegno.weights.identify import identify
from disegno.weights.keys import mmdit, openclip
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_a_torch_checkpoint_becomes_safetensors(tmp_path: Path) -> None:
    source = write_sd1_checkpoint(tmp_path / "a.ckpt", layout=Layout(dtype=torch.float16, lightning=True, ema=True))
    done = convert(source, out := tmp_path / "new" / "folder" / "b.safetensors")
    assert _same(load_file(source), load_file(out))
    assert done.left_out[0] == "epoch: beside the state_dict"
    assert done.card.metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert done.card.metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert done.card.metadata["modelspec.title"] == "a"


def test_a_model_goes_to_a_folder_and_back(tmp_path: Path) -> None:
    source = write_sd1_checkpoint(tmp_path / "a.safetensors", layout=WHOLE)
    there = convert(source, tmp_path / "folder", "diffusers")
    assert there.left_out == ("cond_stage_model.transformer.text_model.embeddings.position_ids",)
    assert (there.card.kind, there.card.family, there.card.prediction) == ("model", "sd1", "epsilon")
    for made, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        _, info = made.from_pretrained(tmp_path / "folder" / part, output_loading_info=True)
        assert not any(info.values())
    convert(tmp_path / "folder", tmp_path / "back.safetensors", "ldm")
    own = {key: tensor for key, tensor in load_file(source).items() if not key.endswith("position_ids")}
    assert _same(own, load_file(tmp_path / "back.safetensors"))


_OLDER = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def _renamed_vae(folder: Path, names: dict[str, str]) -> Path:
    """Return the VAE's file in a folder, its attention's names as they were before diffusers 0.12."""
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for new, old in names.items():
        tensors = {name.replace(new, old) if ".attentions." in name else name: t for name, t in tensors.items()}
    save_safetensors(file, tensors, {})
    return file


def test_a_vae_with_the_older_names_of_its_attention_loses_nothing(tmp_path: Path) -> None:
    source = write_sd1_checkpoint(tmp_path / "a.safetensors", layout=WHOLE)
    convert(source, tmp_path / "folder", "diffusers")
    vae = _renamed_vae(tmp_path / "folder", _OLDER)
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors", "ldm").left_out == ()
    own = {key: tensor for key, tensor in load_file(source).items() if not key.endswith("position_ids")}
    assert _same(own, load_file(tmp_path / "back.safetensors"))
    convert(vae, tmp_path / "vae.safetensors", "ldm")
    assert _same({k: t for k, t in own.items() if k.startswith("first_stage")}, load_file(tmp_path / "vae.safetensors"))


def test_a_vae_of_another_kind_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    convert(write_sd1_checkpoint(tmp_path / "a.safetensors", layout=WHOLE), tmp_path / "folder", "diffusers")
    vae = _renamed_vae(tmp_path / "folder", {".to_q.": ".to_question."})
    for given in (tmp_path / "folder", vae):
        with pytest.raises(KeyMismatch, match=r"4 tensors of its AutoencoderKL .*to_question"):
            convert(given, tmp_path / "back.safetensors", "ldm")
    assert not (tmp_path / "back.safetensors").exists()


def _controlnet() -> dict[str, Tensor]:
    names = (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.2.weight",
        "zero_convs.0.0.bias",
    )
    hint = ("input_hint_block.0.weight", "input_hint_block.14.bias", "middle_block.0.out_layers.3.weight")
    return {f"control_model.{name}": torch.randn(4, 4, 3, 3).bfloat16() for name in (*names, *hint)}


def test_a_control_is_renamed_and_named_back(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", _controlnet(), {"disegno.annotator": "canny"})
    there = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert "controlnet_cond_embedding.conv_in.weight" in load_file(tmp_path / "b.safetensors")
    assert there.card.metadata["modelspec.preprocessor"] == "canny"
    assert there.card.layout == "diffusers"
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "ldm")
    assert _same(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "c.safetensors"))


def test_what_has_no_table_is_refused_by_name(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.ones(9, 3)}, {})
    with pytest.raises(UnknownKind, match=r"flux\.safetensors \(flux, unet, \? names\) cannot be renamed to diffusers"):
        convert(tmp_path / "flux.safetensors", tmp_path / "b.safetensors", "diffusers")


def test_half_a_model_is_refused(tmp_path: Path) -> None:
    source = write_sd1_checkpoint(tmp_path / "a.safetensors")
    tensors = {k: t for k, t in load_file(source).items() if not k.startswith("first_stage_model.")}
    save_safetensors(tmp_path / "b.safetensors", tensors, {})
    assert identify(tmp_path / "b.safetensors").kind == "model"
    with pytest.raises(KeyMismatch, match="first_stage_model"):
        convert(tmp_path / "b.safetensors", tmp_path / "folder", "diffusers")


def _broken(tmp_path: Path, name: str, shape: tuple[int, ...] | None) -> Path:
    """Return a model in which a tensor has this shape, or is not there."""
    tensors = load_file(write_sd1_checkpoint(tmp_path / "a.safetensors"))
    assert name in tensors
    other = {} if shape is None else {name: torch.zeros(shape)}
    save_safetensors(tmp_path / "b.safetensors", {k: t for k, t in tensors.items() if k != name} | other, {})
    return tmp_path / "b.safetensors"


_CLIP = "cond_stage_model.transformer.text_model."


@pytest.mark.parametrize("shape", [None, (64,), ()])
@pytest.mark.parametrize(
    "name",
    [
        f"{_CLIP}embeddings.token_embedding.weight",
        f"{_CLIP}embeddings.position_embedding.weight",
        f"{_CLIP}encoder.layers.0.mlp.fc1.weight",
        "first_stage_model.decoder.conv_in.weight",
    ],
)
def test_a_model_without_what_tells_its_sizes_is_refused_by_name(
    tmp_path: Path, name: str, shape: tuple[int, ...] | None
) -> None:
    source = _broken(tmp_path, name, shape)
    with pytest.raises(KeyMismatch, match=r"conv_in|embedding|fc1"):
        convert(source, tmp_path / "folder", "diffusers")


@pytest.mark.parametrize("shape", [(), (0, 4), (7, 4)])
def test_rows_that_are_no_equal_parts_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(KeyMismatch, match="in_proj_weight is"):
        openclip.from_openclip({"transformer.resblocks.0.attn.in_proj_weight": torch.zeros(shape)}, 1)
    with pytest.raises(KeyMismatch, match=r"qkv\.weight is"):
        mmdit.from_original({"joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(shape)})


@pytest.mark.parametrize("lost", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("shape", [None, ()])
def test_a_part_of_an_attention_that_is_missing_or_does_not_fit_is_refused(
    lost: str, shape: tuple[int, ...] | None
) -> None:
    names = [f"encoder.layers.0.self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")]
    given = {name: torch.ones(4, 4) for name in names}
    wrong = f"encoder.layers.0.self_attn.{lost}.weight"
    given = {name: tensor for name, tensor in given.items() if name != wrong}
    with pytest.raises(KeyMismatch, match=lost):
        openclip.to_openclip(given if shape is None else given | {wrong: torch.zeros(shape)})
