"""Files of real size that hold no numbers: the header is written, the rest is a hole. And the shapes of real files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

KEYMAPS = Path(__file__).parents[1] / "golden" / "keymaps"
Shapes = dict[str, tuple[int, ...]]


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]], words: Mapping[str, str] | None = None) -> Path:
    """Return `path`, now a sparse float16 safetensors file of these shapes."""
    header: dict[str, object] = {"__metadata__": dict(words)} if words else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # as safetensors does: what does not begin at a multiple of its size is copied
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return path


def _keymap(name: str, names: str) -> Shapes:
    table: dict[str, dict[str, object]] = json.loads((KEYMAPS / f"{name}.json").read_text("utf-8"))
    return {str(row["diffusers"]) if names == "diffusers" else key: tuple(row["shape"]) for key, row in table.items()}


def controlnet(names: str = "ldm", width: int = 768) -> Shapes:
    """Return SD 1.5's ControlNet; `width`: of the text that it attends to."""
    return _widened(_keymap("controlnet_sd15_keymap", names), width)


def ctrlora_base(names: str = "ldm", stale: bool = True, width: int = 768) -> Shapes:
    """Return CtrLoRA's Base ControlNet, with the stale matrices of its last training task."""
    base = _keymap("ctrlora_sd15_basecn_keymap", names)
    return _widened(base | (_matrices(names) if stale else {}), width)


def ctrlora_condition(names: str = "ldm", rank: int = 128, width: int = 768) -> Shapes:
    """Return a CtrLoRA condition file."""
    marks = (
        ("zero_convs", "middle_block_out", "norm")
        if names == "ldm"
        else ("controlnet_", "attentions.0.norm", ".norm1", ".norm2")
    )
    own = {key: s for key, s in ctrlora_base(names, stale=False).items() if any(mark in key for mark in marks)}
    return _widened(own | _matrices(names, rank), width)


def _matrices(names: str, rank: int = 128) -> Shapes:
    rows: list[dict[str, object]] = json.loads((KEYMAPS / "ctrlora_sd15_lora_modules.json").read_text("utf-8"))
    shapes: Shapes = {}
    for row in rows:
        module = row["original" if names == "ldm" else "diffusers"]
        shapes[f"{module}.lora_layer.down.weight"] = (rank, int(str(row["in_features"])))
        shapes[f"{module}.lora_layer.up.weight"] = (int(str(row["out_features"])), rank)
    return shapes


def _widened(shapes: Shapes, width: int) -> Shapes:
    down = (
        "attn2.to_k.weight",
        "attn2.to_v.weight",
        "attn2.to_k.lora_layer.down.weight",
        "attn2.to_v.lora_layer.down.weight",
    )
    return {key: (s[0], width) if key.endswith(down) else s for key, s in shapes.items()}


def model(width: int = 768, in_channels: int = 4) -> Shapes:
    """Return a model in one file: SD 1.x, 2 or XL by the width of its text."""
    text = {768: "cond_stage_model.transformer.x", 1024: "cond_stage_model.model.x", 2048: "conditioner.embedders.0.x"}
    cross = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    return {
        "model.diffusion_model.input_blocks.0.0.weight": (320, in_channels, 3, 3),
        cross: (320, width),
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
        text[width]: (1,),
    }


def lora(width: int = 768, rank: int = 16, modules: int = 264) -> Shapes:
    """Return a style LoRA as kohya's trainer writes it."""
    shapes: Shapes = {}
    for number in range(modules):
        module = f"lora_unet_down_blocks_{number}_attentions_0_transformer_blocks_0_attn2_to_k"
        shapes |= {
            f"{module}.lora_down.weight": (rank, width),
            f"{module}.lora_up.weight": (320, rank),
            f"{module}.alpha": (),
        }
    return shapes
