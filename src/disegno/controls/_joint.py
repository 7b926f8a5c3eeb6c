"""A control net of transformer blocks that is called as a UNet's is: CtrLoRA's Base ControlNet for Stable Diffusion 3.

The first blocks of the model's transformer, which are shown the condition's latents in the place of the noisy ones, and
a zero-initialised linear layer behind each. The pooled text comes as one token more behind the others.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from disegno.core.errors import UnknownKind, WrongFamily
from disegno.diffusion.patches import spread, tokens_to_map, whole_patches, without_pooled
from disegno.memory import Memory
from disegno.weights.keys import mmdit

POSITIONS = "pos_embed.pos_embed"  # fixed, and the model's own: left out of files
_PATCHES, _ZERO = "pos_embed.proj.weight", "controlnet_blocks."
_OF_TEXT_OUT = ("ff_context.", "attn.to_add_out", "attn.add_q_proj", "attn.norm_added_q")
_SHARED = (
    *("patch_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim"),
    *("caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size", "qk_norm"),
)


class JointControl(nn.Module):
    """The blocks. `num_blocks`: of the model's transformer, between which what they add is spread."""

    def __init__(self, model: Mapping[str, Any], num_layers: int) -> None:
        super().__init__()
        dual = tuple(i for i in model["dual_attention_layers"] if i < num_layers)
        shared = {name: model[name] for name in _SHARED}
        with torch.device("meta"):  # every tensor comes from a file or the model, the positions too
            made = SD3ControlNetModel(**shared, num_layers=num_layers, dual_attention_layers=dual)
        assert made.pos_embed is not None and made.context_embedder is not None
        self.pos_embed, self.time_text_embed = made.pos_embed, made.time_text_embed
        self.context_embedder, self.transformer_blocks = made.context_embedder, made.transformer_blocks
        self.controlnet_blocks = made.controlnet_blocks
        self.patch, self.pooled = int(model["patch_size"]), int(model["pooled_projection_dim"])
        self.num_blocks, self.recomputes = int(model["num_layers"]), False

    def is_idle(self, name: str) -> bool:
        """Return whether a tensor or module decides nothing: the last block's text goes nowhere."""
        block, _, rest = name.removeprefix("transformer_blocks.").partition(".")
        return block == str(len(self.transformer_blocks) - 1) and rest.startswith(_OF_TEXT_OUT)

    def enable_gradient_checkpointing(self) -> None:
        """Keep no block's inner tensors for the gradients: they are worked out again."""
        self.recomputes = True

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """Return what is added, as maps of tokens (b d h w): as ControlNetModel does. sample: (b c h w)."""
        tokens, pooled = without_pooled(encoder_hidden_states, self.pooled)
        sample = whole_patches(sample, self.patch)
        height, width = (side // self.patch for side in sample.shape[-2:])
        x, emb = self.pos_embed(sample), self.time_text_embed(timestep, pooled)  # b n d, b d
        states = self.context_embedder(tokens)
        maps = list[Tensor]()
        for block, zero in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            if self.recomputes and self.training:
                states, x = checkpoint(block, x, states, emb, use_reentrant=False)
            else:
                states, x = block(hidden_states=x, encoder_hidden_states=states, temb=emb)
            maps.append(tokens_to_map(zero(x), height, width))
        added = spread(tuple(maps), self.num_blocks)
        return list(added.down), added.mid


def open_joint(name: str, tensors: Mapping[str, Tensor], model: SD3Transformer2DModel, memory: Memory) -> JointControl:
    """Return the Base ControlNet with these weights, frozen, placed. Raises UnknownKind, WrongFamily, KeyMismatch."""
    if _PATCHES not in tensors or not any(key.startswith(_ZERO) for key in tensors):
        raise UnknownKind(
            f"{name} has no {_PATCHES} or no {_ZERO}...: it is no Base ControlNet for Stable Diffusion 3."
        )
    width, wanted = len(tensors[_PATCHES]), model.inner_dim
    if width != wanted:
        raise WrongFamily(
            f"{name} does not fit the open model: its blocks are {width} wide, the model's {wanted}. Choose a base that"
            " was made for this size of Stable Diffusion 3."
        )
    own = {POSITIONS: model.state_dict()[POSITIONS], **tensors}
    config, num = dict(model.config), mmdit.num_blocks(own)
    return memory.without_fp16().build(lambda: JointControl(config, num), own, name)
