"""GGUF files draw: a net, its text encoders and its VAE beside it, give the picture of one file of the same numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature, miniature_sd3, miniature_sdxl, sd1, sd3, sdxl
from disegno.backbones.miniature import ldm_vae
from disegno.backbones.miniature_sd3 import Sd3
from disegno.cli.main import main
from disegno.core.errors import KeyMismatch, ModelFileError, WrongFamily
from disegno.core.settings import PackedUse
from disegno.weights.keys import ldm, mmdit
from disegno.weights.load import load_file
from disegno.weights.packed_tensor import PackedTensor
from disegno.weights.save import save_weights
from kit import gguf
from kit.vocabulary import gguf_words, write_spiece

pytestmark = pytest.mark.e2e

_LLAMAS = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.layer_norm": "ffn_norm",
    "DenseReluDense.wi_0": "ffn_gate",
    "DenseReluDense.wi_1": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
    **{f"SelfAttention.{name}": f"attn_{name}" for name in "qkvo"},
    "encoder.block.": "enc.blk.",
    "layer.0.": "",
    "layer.1.": "",
}


def _llamas(name: str) -> str:
    for theirs, ours in _LLAMAS.items():
        name = name.replace(theirs, ours)
    return name


def _studio(folder: Path, cache: Path, use: PackedUse = "unpacked") -> Studio:
    return Studio(Settings(model_dirs=(folder,), cache_dir=cache, dtype="fp32", device="cpu", gguf=use))


def _drawn(folder: Path, cache: Path, model: str, use: PackedUse = "unpacked", **fields: object) -> np.ndarray:
    given: dict[str, object] = {"prompt": "a red car", "negative": "blur", "seed": 1, "steps": 3, "model": model}
    request = Request(**(given | {"width": 64, "height": 64} | fields))
    last = list(generate(request, studio=_studio(folder, cache, use)))[-1]
    assert isinstance(last, Result) and not [word for word in last.warnings if "no " in word], last.warnings
    return np.asarray(last.images[0]).astype(int)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """The same numbers at other places in memory: a level of 255 apart at most; and no flat picture."""
    return one.std() > 5 and int(np.abs(one - other).max()) <= 1


def _net(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _prefixed(path: Path, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in load_file(path).items()}


def _write_sd3(folder: Path, made: Sd3, flat: bool = False) -> Path:
    """Write a net, three text encoders and a VAE as files of their own; `flat`: the positions lack their outer side."""
    own = mmdit.to_original(miniature_sd3.net_tensors(made))
    stored, words = gguf.as_converted(own, gguf.Q8_0)
    stored["pos_embed"] = gguf.plain(own["pos_embed"][0] if flat else own["pos_embed"], gguf.F16)
    path = gguf.write(folder / "unet" / "sd3-Q8_0.gguf", stored, words | {"general.architecture": "sd3"})
    for stem, name, kind in (("clip_l-F16", "clip_l", gguf.Q8_0), ("clip_g-q4_0", "clip_g", gguf.Q4_0)):
        clip, _ = gguf.as_converted(miniature_sd3.text_tensors(name, made), kind)
        gguf.write(folder / "clip" / f"{stem}.gguf", clip, {"general.architecture": "clip"})
    t5 = {_llamas(name): tensor for name, tensor in miniature_sd3.text_tensors("t5", made).items()}
    stored, _ = gguf.as_converted(t5, gguf.Q4_0)
    told = gguf_words() | {"general.architecture": "t5encoder"}
    gguf.write(folder / "clip" / "t5-v1_1-xxl-encoder-Q4_0.gguf", stored, told)
    save_weights(path.with_suffix(".vae.safetensors"), ldm_vae(miniature_sd3.vae_tensors(made)), {})
    return path


def _joined_sd3(folder: Path, path: Path, made: Sd3) -> Path:
    """Write one file of the same numbers, by the names of a whole model."""
    tensors = _prefixed(path, mmdit.PREFIX) | ldm_vae(miniature_sd3.vae_tensors(made))
    for stem, name in (("clip_l-F16", "clip_l"), ("clip_g-q4_0", "clip_g")):
        tensors |= _prefixed(path.parents[1] / "clip" / f"{stem}.gguf", f"text_encoders.{name}.transformer.")
    t5 = load_file(path.parents[1] / "clip" / "t5-v1_1-xxl-encoder-Q4_0.gguf")
    names = miniature_sd3.text_tensors("t5", made)
    assert {_llamas(name) for name in names} == t5.keys()
    tensors |= {f"text_encoders.t5xxl.transformer.{name}": t5[_llamas(name)] for name in names}
    save_weights(folder / "whole.safetensors", tensors, {})
    write_spiece(folder / "spiece.model")
    return folder


@pytest.mark.parametrize("kind", ["3", "3.5-medium", "3.5-large"])
def test_stable_diffusion_3_draws_the_picture_of_the_same_numbers(tmp_path: Path, kind: str) -> None:
    made = Sd3(kind=kind)
    path = _write_sd3(tmp_path / "parts", made)
    whole = _joined_sd3(tmp_path / "whole", path, made)
    drawn = _drawn(tmp_path / "parts", tmp_path / "a", "sd3-Q8_0")
    assert _same(drawn, _drawn(whole, tmp_path / "b", "whole"))


def test_positions_without_their_outer_side_are_the_same(tmp_path: Path) -> None:
    """llama-quantize leaves it out; ComfyUI-GGUF's patched one puts it back."""
    for name, flat in (("a", False), ("b", True)):
        _write_sd3(tmp_path / name, Sd3(), flat)
    a, b = (_drawn(tmp_path / name, tmp_path / "cache", "sd3-Q8_0") for name in "ab")
    assert _same(a, b)


def test_t5_of_a_gguf_file_is_kept_in_8_bits_too(tmp_path: Path) -> None:
    _write_sd3(tmp_path / "parts", Sd3())
    own = Settings(model_dirs=(tmp_path / "parts",), cache_dir=tmp_path / "cache", dtype="fp32", device="cpu")
    whole, eight = (
        Studio(replace(own, t5=t5)).backbone("sd3-Q8_0").encode_text(["a red car"]) for t5 in ("on", "int8")
    )
    assert 0 < (whole.tokens - eight.tokens).norm() / whole.tokens.norm() < 0.05


def _write_sdxl(folder: Path) -> Path:
    own = _net(miniature_sdxl.original_tensors(), ldm.UNET_PREFIX)
    stored, words = gguf.as_converted(own, gguf.Q8_0, reshapes=True)
    of_values = (word.removeprefix("comfy.gguf.orig_shape.") for word in words if word.endswith("attn2.to_v.weight"))
    name = next(of_values)
    stored[name] = gguf.drawn(12, stored[name].shape, seed=1, scale=2e-4)  # Q4_K
    assert len(words) > 20
    path = gguf.write(folder / "xl-Q4_K_S.gguf", stored, words | {"general.architecture": "sdxl"})
    save_weights(path.with_suffix(".vae.safetensors"), miniature_sdxl.nets().vae, {})
    return path


def test_stable_diffusion_xl_draws_the_picture_of_the_same_numbers(tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    path = _write_sdxl(parts)
    with pytest.raises(KeyMismatch, match=r"no OpenCLIP .*beside it, as clip_g\.safetensors and clip_l\.safetensors"):
        _drawn(parts, tmp_path / "a", "xl-Q4_K_S")
    clip_g = {name: gguf.plain(tensor) for name, tensor in miniature_sdxl.text_tensors("clip_g").items()}
    gguf.write(parts / "clip_g.gguf", clip_g, {"general.architecture": "clip"})
    with pytest.raises(KeyMismatch, match=r"no CLIP-L, in it or beside it.*clip_l\.safetensors"):
        _drawn(parts, tmp_path / "a", "xl-Q4_K_S")
    save_weights(parts / "clip_l.safetensors", miniature_sdxl.text_tensors("clip_l"), {})
    tensors = {n: t for n, t in miniature_sdxl.original_tensors().items() if not n.startswith(ldm.UNET_PREFIX)}
    save_weights(whole / "whole.safetensors", tensors | _prefixed(path, ldm.UNET_PREFIX), {})
    assert _same(_drawn(parts, tmp_path / "a", "xl-Q4_K_S"), _drawn(whole, tmp_path / "b", "whole"))


def test_the_refiner_wants_one_encoder(tmp_path: Path) -> None:
    made = miniature_sdxl.Sdxl(refines=True)
    stored, words = gguf.as_converted(
        _net(miniature_sdxl.original_tensors(made), ldm.UNET_PREFIX), gguf.Q8_0, reshapes=True
    )
    path = gguf.write(tmp_path / "refiner.gguf", stored, words | {"general.architecture": "sdxl"})
    save_weights(tmp_path / "vae.safetensors", miniature_sdxl.nets().vae, {})
    for name in ("clip_l", "clip_g"):
        save_weights(tmp_path / f"{name}.safetensors", miniature_sdxl.text_tensors(name, made), {})
    assert sdxl.read_file(path, tmp_path / "vae.safetensors").clip_l is None


def _write_sd1(folder: Path, names: str = "ldm") -> Path:
    """Write a net, by these names, CLIP-L and a VAE as files of their own."""
    own = miniature.nets().unet if names == "diffusers" else _net(miniature.original_tensors(), ldm.UNET_PREFIX)
    stored, words = gguf.as_converted(own, gguf.Q4_0, reshapes=True)
    path = gguf.write(folder / "mini.gguf", stored, words | {"general.architecture": "sd1"})
    save_weights(folder / "mini.vae.safetensors", miniature.nets().vae, {})
    clip = {f"text_model.{name}": gguf.plain(tensor) for name, tensor in miniature.text_tensors().items()}
    gguf.write(folder / "text_encoders" / "clip_l.gguf", clip)
    return path


@pytest.mark.parametrize("names", ["ldm", "diffusers"])
def test_stable_diffusion_1_draws_the_picture_of_the_same_numbers(tmp_path: Path, names: str) -> None:
    path = _write_sd1(tmp_path / "parts", names)
    found = load_file(path)
    if names == "diffusers":
        originals = ldm.unet_originals(found)
        found = {originals[name]: tensor for name, tensor in found.items()}
    tensors = {n: t for n, t in miniature.original_tensors().items() if not n.startswith(ldm.UNET_PREFIX)}
    tensors |= {ldm.UNET_PREFIX + name: tensor for name, tensor in found.items()}
    save_weights(tmp_path / "whole" / "whole.safetensors", tensors, {})
    drawn = _drawn(tmp_path / "parts", tmp_path / "a", "mini")
    assert _same(drawn, _drawn(tmp_path / "whole", tmp_path / "b", "whole"))
    save_weights(tmp_path / "whole" / "fine.safetensors", miniature.original_tensors(), {})
    assert not _same(drawn, _drawn(tmp_path / "whole", tmp_path / "b", "fine"))  # 4 bits are seen


# ---- packed in memory


def _packed(net: nn.Module) -> tuple[int, int]:
    """How many bytes its packed weights take, and how many numbers they are."""
    found = [one for one in net.parameters() if isinstance(one, PackedTensor)]
    return sum(one.packed_bytes for one in found), sum(one.numel() for one in found)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_what_stays_packed_draws_the_same_picture(tmp_path: Path, family: str) -> None:
    if family == "sdxl":
        path = _write_sdxl(tmp_path)
        for name in ("clip_l", "clip_g"):
            save_weights(tmp_path / f"{name}.safetensors", miniature_sdxl.text_tensors(name), {})
    else:
        path = _write_sd1(tmp_path) if family == "sd1" else _write_sd3(tmp_path, Sd3())
    pictures = {use: _drawn(tmp_path, tmp_path / "cache", path.stem, use=use) for use in ("unpacked", "packed")}
    assert _same(*pictures.values())
    backbone = _studio(tmp_path, tmp_path / "cache", "packed").backbone(path.stem)
    packed_bytes, num = _packed(backbone.lora_nets["unet"])
    assert num > sum(one.numel() for one in backbone.lora_nets["unet"].parameters()) / 2
    assert packed_bytes < 1.1 * num  # 8 bits and a scale, or fewer; float16 has two bytes
    plain = _studio(tmp_path, tmp_path / "cache", "unpacked").backbone(path.stem)
    assert all(_packed(net) == (0, 0) for net in plain.lora_nets.values())
    if family == "sd3":
        assert _packed(backbone.lora_nets["te3"])[1]


def test_a_lora_is_put_on_what_stays_packed(tmp_path: Path) -> None:
    path, target = _write_sd1(tmp_path), "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    net = _studio(tmp_path, tmp_path / "cache").backbone(path.stem).lora_nets["unet"]
    out, inner = (
        net.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k").get_parameter("weight").shape
    )
    pair = {f"{target}.lora_down.weight": torch.ones(2, inner), f"{target}.lora_up.weight": torch.ones(out, 2)}
    save_weights(tmp_path / "ink.safetensors", pair, {})
    plain = _drawn(tmp_path, tmp_path / "cache", path.stem, use="packed")
    with_it = [
        _drawn(tmp_path, tmp_path / "cache", path.stem, use=use, prompt="a red car <lora:ink:1>")
        for use in ("unpacked", "packed")
    ]
    assert _same(*with_it) and not _same(plain, with_it[1])


def test_the_command_line_lists_shows_verifies_draws_and_converts(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    _write_sd1(folder)
    (folder / "broken.gguf").write_bytes((folder / "mini.gguf").read_bytes()[:-99])
    language = {"token_embd.weight": gguf.plain(torch.ones(4, 4)), "blk.0.attn_q.weight": gguf.plain(torch.ones(4, 4))}
    gguf.write(folder / "words.gguf", language, {"general.architecture": "llama"})
    told = {"DISEGNO_MODEL_DIRS": str(folder), "DISEGNO_CACHE_DIR": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        done = CliRunner().invoke(main, list(words), env=told, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    cards = {Path(card["path"]).name: card for card in json.loads(run("models", "list", "--json")) if card["path"]}
    kinds = {name: (cards[name]["kind"], cards[name]["family"]) for name in ("mini.gguf", "clip_l.gguf", "words.gguf")}
    assert kinds == {"mini.gguf": ("model", "sd1"), "clip_l.gguf": ("text", ""), "words.gguf": ("unknown", "")}
    assert "is a language model" in cards["words.gguf"]["problem"] and "cut short" in cards["broken.gguf"]["problem"]
    shown = json.loads(run("models", "show", "mini", "--json"))
    assert (shown["dtype"], shown["layout"], shown["prediction"]) == ("Q4_0", "ldm", "epsilon")
    assert shown["metadata"] == {"general.architecture": "sd1"}
    assert "sound, sha256 " in run("models", "verify", "mini")
    draw = ("a cat", "--steps", "2", "--size", "64x64", "--seed", "1", "--dtype", "fp32", "--quiet")
    run("generate", *draw, "--model", "mini", "-o", str(tmp_path / "a.png"))
    run("models", "convert", "mini", str(folder / "plain.safetensors"))
    run("generate", *draw, "--model", "plain", "--vae", "mini.vae", "-o", str(tmp_path / "b.png"))
    a, b = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert _same(a, b)
    run("models", "convert", "mini", str(tmp_path / "net.safetensors"), "--to", "diffusers")
    assert load_file(tmp_path / "net.safetensors").keys() == miniature.nets().unet.keys()
    refused = CliRunner().invoke(main, ["models", "convert", "plain", str(tmp_path / "x.gguf")], env=told)
    assert refused.exit_code == 2 and "end it in one of .safetensors" in refused.output


def test_a_text_encoder_is_no_model(tmp_path: Path) -> None:
    _write_sd1(tmp_path)
    with pytest.raises(ModelFileError, match=r"clip_l\.gguf holds a text, not a model"):
        _drawn(tmp_path, tmp_path / "cache", str(tmp_path / "text_encoders" / "clip_l.gguf"))


def test_a_net_of_another_family_or_without_a_vae_is_refused_in_words(tmp_path: Path) -> None:
    third, xl = _write_sd3(tmp_path / "three", Sd3()), _write_sdxl(tmp_path / "xl")
    with pytest.raises(WrongFamily, match=r"sd3-Q8_0\.gguf is for sd3, not for sdxl"):
        sdxl.read_file(third)
    with pytest.raises(WrongFamily, match=r"xl-Q4_K_S\.gguf is for sdxl, not for sd1"):
        sd1.read_file(xl)
    with pytest.raises(KeyMismatch, match=r"has no VAE.*beside the model's file as sd3-Q8_0\.vae\.safetensors"):
        sd3.read_file(third)
