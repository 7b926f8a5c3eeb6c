"""Stability AI's ControlNets for Stable Diffusion 3.5 large, in their own files: against the equations of their own
program, written out here, and against diffusers' class with the same weights.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3ControlNetModel
from torch import Tensor
from torch.nn import functional as F

from corpus import headers
from disegno.backbones import miniature_sd3 as mini
from disegno.backbones import sd3
from disegno.backbones._mmdit import Mmdit
from disegno.backbones.miniature import draw
from disegno.controls import controlnet_sd3
from disegno.controls.base import Condition
from disegno.core.errors import KeyMismatch, UnknownKind, WrongFamily
from disegno.diffusion.call import Call, Row
from disegno.memory import FULL_PRECISION, Memory
from disegno.text.learnt import TextOptions
from disegno.weights.convert import convert
from disegno.weights.identify import identify
from disegno.weights.keys import sd3_control
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
ATOL = 2e-5  # float32, values of size 7; measured 1e-6
SIDE, PATCH = 8, 2  # latent cells
SHARED = ("patch_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads")
OF_LARGE: dict[str, Any] = {
    "joint_attention_dim": None,
    "use_pos_embed": False,
    "pos_embed_type": None,
    "qk_norm": None,
    "force_zeros_for_pooled_projection": False,
}
SMALL = {name: mini.SD3.net_config[name] for name in (*SHARED, "pooled_projection_dim")} | OF_LARGE | {"num_layers": 2}
LARGE = OF_LARGE | {
    "num_layers": 19,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "pooled_projection_dim": 2048,
}
PUBLISHED = {
    "controlnet_blocks.18.weight": (2432, 2432),
    "pos_embed_input.proj.weight": (2432, 16, 2, 2),
    "time_text_embed.timestep_embedder.linear_1.weight": (2432, 256),
    "time_text_embed.text_embedder.linear_1.weight": (2432, 2048),
    "transformer_blocks.18.adaLN_modulation.1.weight": (14592, 2432),
    "transformer_blocks.18.attn.qkv.weight": (7296, 2432),
    "transformer_blocks.18.attn.qkv.bias": (7296,),
    "transformer_blocks.18.attn.proj.weight": (2432, 2432),
    "transformer_blocks.18.mlp.fc1.weight": (9728, 2432),
    "transformer_blocks.18.mlp.fc2.weight": (2432, 9728),
}


def _net_tensors() -> dict[str, Tensor]:
    return draw(SD3ControlNetModel(**SMALL), 3)


def _original(number: int | None = 0) -> dict[str, Tensor]:
    told = {} if number is None else {sd3_control.CONTROL_TYPE: torch.tensor([number], dtype=torch.int32)}
    return sd3_control.to_original(_net_tensors()) | told


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Mmdit:
    made = mini.Sd3(kind="3.5-large")
    folder = mini.write_folder(tmp_path_factory.mktemp("models") / "large", made, encoders=("clip_l", "clip_g"))
    return sd3.open(folder, MEMORY)


def _open(folder: Path, backbone: Mmdit, tensors: dict[str, Tensor]) -> controlnet_sd3.ControlNetSd3Controller:
    save_safetensors(folder / "control.safetensors", tensors, {})
    return controlnet_sd3.open(folder / "control.safetensors", backbone, MEMORY)


def _image() -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def _call(backbone: Mmdit) -> Call:
    states = backbone.read_prompt("a red car", TextOptions())
    x = torch.randn(1, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    row = Row(0, positive=True, text="a", progress=0.0)
    return Call(x, torch.tensor([611.0]), states.tokens, (row,), net=backbone.evaluate, pooled=states.pooled)


# ---- the original's forward


def _linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _embedded(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return _linear(p, f"{name}.linear_2", F.silu(_linear(p, f"{name}.linear_1", x)))


def _block(p: dict[str, Tensor], name: str, x: Tensor, c: Tensor, heads: int) -> Tensor:
    """x += gate attn(scaled, shifted norm(x)); x += gate mlp(...): DiT's block, Peebles and Xie 2023, figure 3."""
    mods = _linear(p, f"{name}.adaLN_modulation.1", F.silu(c))[:, None].chunk(6, dim=-1)
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + mods[1]) + mods[0]
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in _linear(p, f"{name}.attn.qkv", normed).chunk(3, -1)
    )
    seen = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v
    x = x + mods[2] * _linear(p, f"{name}.attn.proj", seen.transpose(1, 2).flatten(2))
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + mods[4]) + mods[3]
    hidden = F.gelu(_linear(p, f"{name}.mlp.fc1", normed), approximate="tanh")
    return x + mods[5] * _linear(p, f"{name}.mlp.fc2", hidden)


def _forward(p: dict[str, Tensor], backbone: Mmdit, call: Call, condition: Tensor) -> list[Tensor]:
    """Return what the original's net says, one map of tokens a block, by its own tensors."""
    assert call.pooled is not None
    x = backbone.net.pos_embed(call.x)  # the model's own patches and positions
    freqs = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    waves = call.t[:, None] * freqs
    c = _embedded(p, "time_text_embed.timestep_embedder", torch.cat([waves.cos(), waves.sin()], dim=-1))
    c = c + _embedded(p, "time_text_embed.text_embedder", call.pooled)
    patches = F.conv2d(condition, p["pos_embed_input.proj.weight"], p["pos_embed_input.proj.bias"], stride=PATCH)
    x, found = x + patches.flatten(2).transpose(1, 2), list[Tensor]()
    for i in range(SMALL["num_layers"]):
        x = _block(p, f"transformer_blocks.{i}", x, c, SMALL["num_attention_heads"])
        found.append(_linear(p, f"controlnet_blocks.{i}", x))
    return found


@torch.no_grad()
def test_it_says_what_the_originals_equations_and_diffusers_class_say(backbone: Mmdit, tmp_path: Path) -> None:
    call, tensors = _call(backbone), _original()
    opened = _open(tmp_path, backbone, tensors)
    prepared = opened.prepare(Condition(_image(), "k"))
    residuals = prepared(call).residuals
    assert residuals is not None
    own = _forward(tensors, backbone, call, prepared.latents)
    net = SD3ControlNetModel(**SMALL)
    net.load_state_dict(_net_tensors())
    x = backbone.net.pos_embed(call.x)
    (theirs,) = net(x, prepared.latents, pooled_projections=call.pooled, timestep=call.t, return_dict=False)
    ours = [part.flatten(2).transpose(1, 2) for part in (*residuals.down, residuals.mid)]
    places = [0, 1]  # of three blocks the second net's two act at 0 and 1.5: the last block takes none
    assert len(ours) == mini.NUM_BLOCKS - 1
    for place, made in zip(places, ours, strict=True):
        index = int(place / (mini.NUM_BLOCKS / len(own)))
        assert torch.allclose(made, own[index], atol=ATOL), (made - own[index]).abs().max()
        assert torch.allclose(made, theirs[index], atol=ATOL)
    assert own[0].abs().max() > 0.5


@pytest.mark.parametrize(
    ("number", "made_for", "annotator"),
    [(0, "blur", "blur"), (1, "canny", "canny"), (2, "depth", None), (None, "", None)],
)
def test_a_picture_is_shown_as_it_was_in_training(
    backbone: Mmdit, tmp_path: Path, number: int | None, made_for: str, annotator: str | None
) -> None:
    opened = _open(tmp_path, backbone, _original(number))
    assert (opened.made_for, opened.annotator) == (made_for, annotator)
    image = _image()
    pixels = {"canny": image * 255 * 0.5 + 0.5, "depth": (1 - image) * 2 - 1}.get(made_for, image * 2 - 1)
    assert torch.allclose(opened.prepare(Condition(image, "k")).latents, backbone.encode_image(pixels), atol=1e-4)


def test_what_does_not_fit_is_refused(backbone: Mmdit, tmp_path: Path) -> None:
    with pytest.raises(UnknownKind, match="of the control type 7; known are 0 to 2: blur, canny, depth"):
        _open(tmp_path, backbone, _original(7))
    with pytest.raises(KeyMismatch, match=r"1 missing: transformer_blocks\.1\.ff\.net\.2\.bias"):
        _open(tmp_path, backbone, {k: t for k, t in _original().items() if k != "transformer_blocks.1.mlp.fc2.bias"})
    square = _original() | {"time_text_embed.text_embedder.linear_1.weight": torch.ones(64, 64)}
    with pytest.raises(UnknownKind, match="as no published ControlNet does"):
        _open(tmp_path, backbone, square)
    wide = SD3ControlNetModel(**(SMALL | {"num_attention_heads": 2}))
    with pytest.raises(WrongFamily, match="the width of the blocks is 128, the model's is 64"):
        _open(tmp_path, backbone, sd3_control.to_original(wide.state_dict()))


def test_its_form_goes_to_diffusers_and_back(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", _original(1), {})
    card = identify(tmp_path / "a.safetensors")
    assert (card.kind, card.mechanism, card.family, card.layout) == ("control", "controlnet", "sd3", "ldm")
    there = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert (there.card.layout, there.left_out) == ("diffusers", ("control_type",))
    net = SD3ControlNetModel(**SMALL)
    net.load_state_dict(load_file(tmp_path / "b.safetensors"))
    back = convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "ldm")
    old, new = _original(None), load_file(tmp_path / "c.safetensors")
    assert back.left_out == () and old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def test_the_real_names_and_shapes(tmp_path: Path) -> None:
    with torch.device("meta"):
        tensors = SD3ControlNetModel(**LARGE).state_dict()
    original = sd3_control.to_original(tensors)
    assert len(original) == 19 * (2 + 10) + 2 + 8
    assert all(tuple(original[name].shape) == shape for name, shape in PUBLISHED.items())
    shapes = {name: tuple(tensor.shape) for name, tensor in original.items()} | {sd3_control.CONTROL_TYPE: (1,)}
    card = identify(headers.write_header(tmp_path / "canny.safetensors", shapes))
    assert (card.kind, card.mechanism, card.family, card.layout) == ("control", "controlnet", "sd3", "ldm")
    again = sd3_control.from_original(original)
    assert {k: t.shape for k, t in again.items()} == {k: t.shape for k, t in tensors.items()}
    told = controlnet_sd3.config_of("canny", {name: tuple(tensor.shape) for name, tensor in again.items()})
    assert {name: told[name] for name in LARGE if name != "pos_embed_type"} == {
        name: value for name, value in LARGE.items() if name != "pos_embed_type"
    }
