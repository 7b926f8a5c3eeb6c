"""Stable Diffusion 3's transformer while something is taught under it: called as a UNet is, and its blocks copied."""

from dataclasses import replace

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from disegno.controls._joint import JointControl
from disegno.diffusion.call import Residuals
from disegno.diffusion.patches import block_residuals, whole_patches, without_pooled
from disegno.memory import Memory, build_empty
from disegno.weights.keys.control import is_zero_conv


class JointNet(nn.Module):
    """The transformer, called as UNet2DConditionModel is; the pooled text comes as one token more behind the others."""

    def __init__(self, net: SD3Transformer2DModel) -> None:
        super().__init__()
        self.net = net

    def enable_gradient_checkpointing(self) -> None:
        """Keep no block's inner tensors for the gradients: they are worked out again."""
        self.net.enable_gradient_checkpointing()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool = False,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Return the output, (b c h w), in a tuple. sample: (b c h w); the residuals: maps of tokens."""
        config = self.net.config
        tokens, pooled = without_pooled(encoder_hidden_states, int(config["pooled_projection_dim"]))
        x, (height, width) = whole_patches(sample, int(config["patch_size"])), sample.shape[-2:]
        blocks = None
        if down_block_additional_residuals is not None and mid_block_additional_residual is not None:
            blocks = block_residuals(Residuals(down_block_additional_residuals, mid_block_additional_residual), x)
        out = self.net(x, tokens, pooled, timestep, block_controlnet_hidden_states=blocks, return_dict=False)[0]
        return (out[..., :height, :width],)


def copy_blocks(net: SD3Transformer2DModel, memory: Memory) -> JointControl:
    """Return a Base ControlNet of the first half of the net's blocks, in float32, all of it ready to train.

    What is added is zero at first (Zhang et al. 2023, 3.1).
    """
    config, num = dict(net.config), max(1, int(net.config["num_layers"]) // 2)

    def make() -> JointControl:
        return JointControl(config, num)

    theirs, shapes = net.state_dict(), build_empty(make).state_dict()
    tensors = {
        name: torch.zeros(empty.shape) if is_zero_conv(name) else theirs[name].detach().float().clone()
        for name, empty in shapes.items()
    }
    masters = Memory(replace(memory.policy, dtype=torch.float32))
    return masters.build(make, tensors, "The new control").requires_grad_(True)
