"""The loaders against the names and shapes of the real SD 1.5 and XL files without their gigabytes: on meta tensors."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from disegno.controls import _net, ctrlora
from disegno.memory import Memory, Policy, build_empty
from disegno.weights import ctrlora_files
from disegno.weights.ctrlora_files import BaseFile, ConditionInfo, read_condition, save_condition
from disegno.weights.keys.control import (
    HINT_PREFIX,
    LORA_MARK,
    Sizes,
    control_keys,
    diffusers_names,
    is_adapted,
    is_transformer_norm,
    is_zero_conv,
    lora_names,
    sizes_of,
)
from disegno.weights.keys.ldm import CONTROL_PREFIX, unet_originals

pytestmark = pytest.mark.parity

KEYMAPS = Path(__file__).parent.parent / "golden" / "keymaps"
META = Memory(Policy(torch.device("meta"), torch.float32))
SD15 = Sizes(
    in_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    transformer_layers_per_block=(1, 1, 1, 1),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    cross_attention_dim=768,
    use_linear_projection=False,
    conditioning_channels=3,
    conditioning_embedding_out_channels=(16, 32, 96, 256),
)
PARAMETERS = {32: 17_882_000, 64: 24_240_000, 128: 36_945_536, 256: 62_370_000}  # of a condition file, by rank

Table = dict[str, tuple[str, tuple[int, ...]]]


def _table(name: str) -> Table:
    """Return key in the file -> (diffusers name, shape)."""
    rows = json.loads((KEYMAPS / f"{name}.json").read_text("utf-8"))
    return {key: (row["diffusers"], tuple(row["shape"])) for key, row in rows.items()}


def _lora(rank: int) -> dict[str, tuple[int, ...]]:
    """Return the 164 LoRA keys and shapes of a file of this rank."""
    shapes: dict[str, tuple[int, ...]] = {}
    for row in json.loads((KEYMAPS / "ctrlora_sd15_lora_modules.json").read_text("utf-8")):
        down, up = lora_names(row["original"])
        shapes |= {down: (rank, row["in_features"]), up: (row["out_features"], rank)}
    return shapes


@dataclass(frozen=True)
class RealHost:
    """SD 1.5 as far as a control net asks, without its weights."""

    net: nn.Module = field(default_factory=nn.Module)
    family: str = "sd1"
    name: str = "sd15"
    fingerprint: str = "sd15"

    def encode_image(self, images: Tensor) -> Tensor:
        return images.new_empty(1, 4, images.shape[-2] // 8, images.shape[-1] // 8)


@pytest.fixture(scope="module")
def base() -> ctrlora.Base:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in _table("ctrlora_sd15_basecn_keymap").values()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctrlora, "read_base", lambda path: BaseFile(path.stem, tensors, {}, "0" * 64))
        return ctrlora.open_base(Path("ctrlora_sd15_basecn700k.ckpt"), RealHost(), META)


@pytest.mark.parametrize(("name", "num_keys"), [("controlnet_sd15_keymap", 340), ("ctrlora_sd15_basecn_keymap", 324)])
def test_names_and_sizes(name: str, num_keys: int) -> None:
    table = _table(name)
    own = control_keys(["model.diffusion_model.out.2.weight", *table])
    names = diffusers_names(own.values())
    assert {key: names[own[key]] for key in own} == {key: target for key, (target, _) in table.items()}
    assert len(own) == num_keys
    assert sizes_of(dict(table.values())) == SD15
    assert any(target.startswith(HINT_PREFIX) for target, _ in table.values()) == (num_keys == 340)


def test_a_controlnet_of_the_real_size_opens() -> None:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in _table("controlnet_sd15_keymap").values()}
    net = _net.open_net("control_v11p_sd15_canny", tensors, RealHost(), META)
    assert sum(p.numel() for p in net.parameters()) == 361_279_120
    assert len(net.controlnet_down_blocks) == 12


def test_a_base_of_the_real_size_opens(base: ctrlora.Base) -> None:
    assert len(base.modules) == 82
    assert sum(map(is_zero_conv, base.own)) == 26
    assert sum(map(is_transformer_norm, base.own)) == 56
    assert sum(p.numel() for p in base.net.parameters()) == 360_192_640


def test_the_published_base_file_is_told_apart() -> None:
    """488 keys: 324 of the net, and 164 stale LoRA matrices."""
    keys = [*_table("ctrlora_sd15_basecn_keymap"), *_lora(128)]
    assert len(keys) == 488
    kept = [name for name in control_keys(keys).values() if ctrlora_files.is_base_name(name)]
    assert len(kept) == 324


@pytest.mark.parametrize("rank", PARAMETERS)
def test_condition_files_of_every_rank(rank: int, base: ctrlora.Base, tmp_path: Path) -> None:
    """246 tensors. The file is written in half precision, sparse: zeros in holes."""
    table = _table("ctrlora_sd15_basecn_keymap")
    shapes = {key: shape for key, (target, shape) in table.items() if is_adapted(target)} | _lora(rank)
    assert len(shapes) == 246
    path = _sparse(tmp_path / f"ctrlora_sd15_basecn700k_palette_rank{rank}_1kimgs_1ksteps.safetensors", shapes)
    condition = read_condition(path)
    assert condition.rank == rank
    assert sum(t.numel() for t in condition.tensors.values()) == pytest.approx(PARAMETERS[rank], rel=1e-3)
    controller = ctrlora.open(path, RealHost(), META, base=base)
    assert controller.applied == ctrlora.Applied(82, 82)
    weights = ctrlora.merged(base, controller.tensors)
    parameters = dict(base.net.named_parameters())
    assert weights.keys() < parameters.keys()
    assert all(tensor.shape == parameters[name].shape for name, tensor in weights.items())
    assert sum(LORA_MARK not in name for name in weights) == 82 + 26 + 56


def _sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write a safetensors file of float16 zeros that takes no disk: a header, and a hole."""
    header: dict[str, object] = {}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def test_published_names_of_the_real_size(base: ctrlora.Base, tmp_path: Path) -> None:
    """Written in the original's names, a rank 1 condition has exactly the keys of the published files."""
    tensors = {name: torch.zeros(own.shape) for name, own in base.own.items()}
    names = diffusers_names(key.removeprefix(CONTROL_PREFIX) for key in _lora(1))
    tensors |= {names[key.removeprefix(CONTROL_PREFIX)]: torch.zeros(shape) for key, shape in _lora(1).items()}
    save_condition(tmp_path / "c.safetensors", tensors, ConditionInfo("c"), "published")
    table = _table("ctrlora_sd15_basecn_keymap")
    expected = {key for key, (target, _) in table.items() if is_adapted(target)} | _lora(1).keys()
    with ctrlora_files.open_file(tmp_path / "c.safetensors") as file:
        assert set(file.keys()) == expected


# ---- Stable Diffusion XL

SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# of diffusers/controlnet-*-sdxl-1.0, -mid, -small, and the least that their class can be: what they have other than the
# model, and millions of parameters
SDXL_CONTROLS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({}, 1251),
    "mid": ({"down_block_types": (*("DownBlock2D",) * 2, "CrossAttnDownBlock2D"), "depths": (1, 1, 1)}, 271),
    "small": ({"down_block_types": ("DownBlock2D",) * 3, "depths": (0, 0, 0)}, 160),
    "smallest": ({"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"}, 126),
}
HEADS = {"full": [10, 10, 20, 20, 20], "mid": [20] * 3, "small": [20], "smallest": []}  # of each attention


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("size", SDXL_CONTROLS)
def test_a_controlnet_of_sdxls_real_sizes_opens(size: str, layout: str) -> None:
    unlike, millions = SDXL_CONTROLS[size]
    depths = unlike.get("depths", SDXL["transformer_layers_per_block"])
    own = SDXL | {name: value for name, value in unlike.items() if name != "depths"}
    real = build_empty(lambda: ControlNetModel(**own | {"transformer_layers_per_block": depths})).state_dict()
    named = dict(real)
    if layout == "original":
        names = unet_originals(real)
        named = {new: named[old] for old, new in names.items()}
        assert {"label_emb.0.0.weight", "zero_convs.8.0.weight", "middle_block.0.in_layers.0.weight"} <= named.keys()
    tensors = {new: named[old] for old, new in diffusers_names(named).items()}
    assert tensors.keys() == real.keys()
    up: Any = {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
    model = RealHost(build_empty(lambda: UNet2DConditionModel(**SDXL, **up)), family="sdxl")
    net = _net.open_net(size, tensors, model, META)
    assert {name: t.shape for name, t in net.state_dict().items()} == {name: t.shape for name, t in real.items()}
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions
    assert len(net.controlnet_down_blocks) == 9
    attentions = [m for m in net.modules() if type(m).__name__ == "Transformer2DModel"]
    assert [m.num_attention_heads for m in attentions] == HEADS[size]
