"""Stable Diffusion XL's UNet while something is taught under it: called as the other UNets are.

The pooled text comes as one token more behind the others, and what the net is told of sizes is the canvas: the same
that it is told when it draws here. So a picture's size before it was fitted, and where it was cut, are not learned.
"""

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from disegno.diffusion.patches import without_pooled
from disegno.diffusion.told import is_told, pooled_width, told_size


class ToldNet(nn.Module):
    """The UNet, called as UNet2DConditionModel is without being told anything."""

    def __init__(self, net: UNet2DConditionModel) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool = False,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Return the output, (b c h w), in a tuple. sample: (b c h w); encoder_hidden_states: (b n+1 d)."""
        tokens, added = self.told(sample, encoder_hidden_states)
        return self.net(
            sample,
            timestep,
            tokens,
            added_cond_kwargs=added,
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
            return_dict=False,
        )

    def told(self, sample: Tensor, states: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the tokens (b n d), and what the net is told besides, of text states (b n+1 d)."""
        tokens, pooled = without_pooled(states, pooled_width(self.net.config))
        return tokens, told_size(pooled, sample)


def called_alike(net: UNet2DConditionModel) -> UNet2DConditionModel | ToldNet:
    """Return the net as a training calls it: with x, t and tokens, whatever else it wants to be told."""
    return ToldNet(net) if is_told(net.config) else net
