"""The names of Stable Diffusion 1.x tensors: the original (LDM) ones and those of diffusers' and transformers' classes.

    original                                  here
    time_embed.0 / .2                         time_embedding.linear_1 / linear_2
    label_emb.0.0 / .0.2                      add_embedding.linear_1 / linear_2 (SDXL)
    input_blocks.0.0                          conv_in
    input_blocks.b.0 / .1 / .0.op             down_blocks.i.resnets.j / attentions.j / downsamplers.0.conv
    middle_block.0 / .1 / .2                  mid_block.resnets.0 / attentions.0 / resnets.1
    output_blocks.b.0 / .1 / .{1|2}.conv      up_blocks.i.resnets.j / attentions.j / upsamplers.0.conv
    out.0 / .2                                conv_norm_out / conv_out
    zero_convs.k.0, middle_block_out.0        controlnet_down_blocks.k, controlnet_mid_block
    input_hint_block.0 / .2 ... .12 / .14     controlnet_cond_embedding.conv_in / blocks.0 ... 5 / conv_out

Any depth: the numbered blocks are placed by a `Layout`, which is read from the names alone, of a whole UNet, of its
encoder half (ControlNet, CtrLoRA) or of a file of LoRA matrices. What follows a module's name (`weight`,
`lora_layer.down.weight`) is kept.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CONTROL_PREFIX = "control_model."
TEXT_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.", "text_model.")

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block_out.0": "controlnet_mid_block",
    "input_hint_block.0": "controlnet_cond_embedding.conv_in",
    **{f"input_hint_block.{2 * k + 2}": f"controlnet_cond_embedding.blocks.{k}" for k in range(6)},
    "input_hint_block.14": "controlnet_cond_embedding.conv_out",
}
_TEXT_MODULES = ("embeddings.", "encoder.", "final_layer_norm.")
_VAE_RESNET = {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Table = Mapping[str, str]

MOST_BLOCKS = 100  # in a row: no net has as many, and a file that names a later one shall not make tables of that size


@dataclass(frozen=True)
class Layout:
    """How many residual blocks each level of the encoder has, shallow to deep: (2, 2, 2, 2) for SD 1.x."""

    res_blocks: tuple[int, ...]

    @property
    def num_residuals(self) -> int:
        """Return how many skip connections there are: what a ControlNet feeds, its middle not counted."""
        return sum(self.res_blocks) + len(self.res_blocks)


def _nested(outer: tuple[str, str], inner: Table) -> dict[str, str]:
    return {f"{outer[0]}.{a}": f"{outer[1]}.{b}" for a, b in inner.items()}


def _encoder(layout: Layout) -> dict[str, str]:
    table: dict[str, str] = {}
    b = 1
    for i, num in enumerate(layout.res_blocks):
        for j in range(num):
            table |= _nested((f"input_blocks.{b}.0", f"down_blocks.{i}.resnets.{j}"), _RESNET)
            table[f"input_blocks.{b}.1"] = f"down_blocks.{i}.attentions.{j}"
            b += 1
        if i < len(layout.res_blocks) - 1:
            table[f"input_blocks.{b}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
            b += 1
    return table


def _decoder(layout: Layout) -> dict[str, str]:
    table: dict[str, str] = {}
    b = 0
    for i, num in enumerate(reversed(layout.res_blocks)):
        for j in range(num + 1):
            table |= _nested((f"output_blocks.{b}.0", f"up_blocks.{i}.resnets.{j}"), _RESNET)
            for k in (1, 2):  # the second where the level has no attention: k is the upsampler's place in its block
                table[f"output_blocks.{b}.{k}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
            table[f"output_blocks.{b}.1"] = f"up_blocks.{i}.attentions.{j}"
            b += 1
    return table


@cache
def unet_table(layout: Layout) -> Table:
    """Return original module name -> diffusers module name, for a UNet or a ControlNet-like encoder of this layout."""
    middle = {"middle_block.1": "mid_block.attentions.0"}
    for k in (0, 1):
        middle |= _nested((f"middle_block.{2 * k}", f"mid_block.resnets.{k}"), _RESNET)
    zeros = {f"zero_convs.{k}.0": f"controlnet_down_blocks.{k}" for k in range(layout.num_residuals)}
    return _FIXED | _encoder(layout) | middle | _decoder(layout) | zeros


def layout_of(names: Iterable[str]) -> Layout:
    """Return the layout of the UNet or encoder with these original names (prefix removed).

    A level ends at a block with `.op`. A file of LoRA matrices has no name for those: a missing number is one too.
    """
    blocks: dict[int, bool] = {}
    for name in names:
        match = re.match(r"input_blocks\.(\d+)\.0(\.op)?", name)
        if match and (b := int(match[1])) < MOST_BLOCKS:
            blocks[b] = blocks.get(b, False) or match[2] is not None
    res_blocks, num = list[int](), 0
    for b in range(1, max(blocks, default=0) + 1):
        if blocks.get(b, True):
            res_blocks.append(num)
            num = 0
        else:
            num += 1
    return Layout((*res_blocks, num))


def diffusers_layout_of(names: Iterable[str]) -> Layout:
    """Return the layout of the UNet or encoder with these diffusers names."""
    found = [match for name in names if (match := re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", name))]
    counts: dict[int, int] = {}
    for i, j in ((int(match[1]), int(match[2])) for match in found):
        if i < MOST_BLOCKS and j < MOST_BLOCKS:
            counts[i] = max(counts.get(i, 0), j + 1)
    return Layout(tuple(counts[i] for i in sorted(counts)))


def rename(name: str, table: Table) -> str | None:
    """Return the name with its longest leading part that is in the table replaced, or None."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        if (target := table.get(".".join(parts[:n]))) is not None:
            return ".".join([target, *parts[n:]])
    return None


def _renamed(names: Iterable[str], table: Table) -> dict[str, str]:
    return {name: target for name in names if (target := rename(name, table)) is not None}


def unet_names(names: Iterable[str], layout: Layout | None = None) -> dict[str, str]:
    """Return original -> diffusers, of a UNet, a ControlNet or CtrLoRA encoder, or a part of one; without prefixes.

    Names that belong to none of them (`loras_dict...`) are left out. `layout`: read from the names if not given.
    """
    names = list(names)
    return _renamed(names, unet_table(layout or layout_of(names)))


def unet_originals(names: Iterable[str], layout: Layout | None = None) -> dict[str, str]:
    """Return diffusers -> original, the inverse of `unet_names`."""
    names = list(names)
    layout = layout or diffusers_layout_of(names)
    attended = {match[1] for name in names if (match := re.match(r"(up_blocks\.\d+)\.attentions\.", name))}
    inverse: dict[str, str] = {}
    last = {f"up_blocks.{i}.upsamplers.0.conv": num for i, num in enumerate(reversed(layout.res_blocks))}
    first = [sum(n + 1 for n in layout.res_blocks[::-1][:i]) for i in range(len(layout.res_blocks))]
    for original, target in unet_table(layout).items():
        if target in last:
            i = int(target.split(".")[1])
            k = 2 if f"up_blocks.{i}" in attended else 1
            original = f"output_blocks.{first[i] + last[target]}.{k}.conv"
        inverse[target] = original
    return _renamed(names, inverse)


@cache
def vae_table(num_levels: int, res_blocks: int) -> Table:
    """Return original module name -> diffusers module name, for an AutoencoderKL; decoder levels count backwards."""
    table: dict[str, str] = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, down, sampler, extra in (("encoder", "down", "downsample", 0), ("decoder", "up", "upsample", 1)):
        table |= {f"{half}.conv_{end}": f"{half}.conv_{end}" for end in ("in", "out")}
        table[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        table |= _nested((f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"), _VAE_ATTENTION)
        blocks = [(f"{half}.mid.block_{k}", f"{half}.mid_block.resnets.{k - 1}") for k in (1, 2)]
        for i in range(num_levels):
            target = f"{half}.{down}_blocks.{i if half == 'encoder' else num_levels - 1 - i}"
            table[f"{half}.{down}.{i}.{sampler}.conv"] = f"{target}.{sampler}rs.0.conv"
            blocks += [(f"{half}.{down}.{i}.block.{j}", f"{target}.resnets.{j}") for j in range(res_blocks + extra)]
        for block in blocks:
            table[block[0]] = block[1]
            table |= _nested(block, _VAE_RESNET)
    return table


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Return original -> diffusers, of an AutoencoderKL; without prefix. `fitted` does the attention's shapes."""
    names = list(names)
    table = vae_table(_count(names, r"encoder\.down\.(\d+)\."), _count(names, r"encoder\.down\.0\.block\.(\d+)\."))
    return _renamed(names, table)


def vae_originals(names: Iterable[str]) -> dict[str, str]:
    """Return diffusers -> original, the inverse of `vae_names`."""
    names = list(names)
    levels = _count(names, r"encoder\.down_blocks\.(\d+)\.")
    table = vae_table(levels, _count(names, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."))
    return _renamed(names, {target: original for original, target in table.items()})


def modern_vae_names(names: Iterable[str]) -> dict[str, str]:
    """Return a diffusers AutoencoderKL file's names -> today's: before diffusers 0.12 the attention had others."""
    return {name: re.sub(r"\.(query|key|value|proj_attn)\.", _modern, name) for name in names}


def _modern(match: re.Match[str]) -> str:
    return f".{_OLD_VAE_ATTENTION[match[1]]}."


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Return a CLIP text encoder's names -> CLIPTextModel's, prefixes removed.

    `position_ids` (a buffer of old transformers) and what lies beside the encoder (`logit_scale`) are left out.
    """
    stems: dict[str, str] = {}
    for name in names:
        prefix = next((p for p in TEXT_PREFIXES if name.startswith(p)), "")
        stems[name] = name.removeprefix(prefix)
    return {name: s for name, s in stems.items() if s.startswith(_TEXT_MODULES) and not s.endswith("position_ids")}


def fitted(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor in this shape where only 1x1 axes differ (a convolution, a linear layer); else as it is."""
    given = tuple(tensor.shape)
    same = given[:2] == shape[:2] and set(given[2:]) <= {1} and set(shape[2:]) <= {1}
    return tensor.reshape(shape) if len(given) >= 2 and len(shape) >= 2 and same else tensor
