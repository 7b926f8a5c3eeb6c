"""Each row's loss of a denoiser under a control: what all recipes but the VAE's share.

The net of the model is frozen. Its encoder and middle see no gradient, since the residuals of a control are added after
them: autograd keeps nothing of them, and on a CPU they run packed. Only its decoder is in the graph.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from disegno.backbones._lockstep import evaluate
from disegno.core.errors import WrongFamily
from disegno.diffusion.call import Residuals, Stream
from disegno.diffusion.objective import Draws, Objective, losses
from disegno.memory import Memory, Policy
from disegno.training.base import Batch
from disegno.training.joint import JointNet
from disegno.training.layers import install
from disegno.training.recipe import Opening
from disegno.training.told_net import ToldNet, called_alike

Shown = Callable[[Batch, Tensor, Tensor, Tensor], Residuals | Stream | Tensor | None]
"""A control while it learns: (the batch, its rows on the device; x (b c h w), t b, tokens (b n d)) -> residuals.

Or a net that runs beside the model's (ControlNet-XS), or tokens behind the text, (b m d) (Uni-ControlNet's global
adapter): then all of the model's net sees gradients. None: nothing is added in this batch.
"""


Called = UNet2DConditionModel | ToldNet | JointNet
"""A model's net as a training calls it: (x, t, tokens) -> output."""

NO_HINT = torch.zeros(())  # in the place of ControlNet's hint, where a net has none


def residuals(net: nn.Module, sample: Tensor, t: Tensor, tokens: Tensor, hint: Tensor = NO_HINT) -> Residuals:
    """Return what a control's net adds, with gradients. sample: (b c h w); t: b; tokens: (b n d); hint: (b 3 H W)."""
    down, mid = net(sample, t, encoder_hidden_states=tokens, controlnet_cond=hint, return_dict=False)
    return Residuals(tuple(down), mid)


def placed(x: Tensor, policy: Policy) -> Tensor:
    """Return what a net is shown, as it wants it."""
    return x.to(policy.device, policy.dtype).contiguous(memory_format=policy.memory_format)


class Denoising(nn.Module):
    """Its call gives each row's loss, (b,). `control`: what trains beside the net, if anything; `show`: how it acts."""

    def __init__(
        self,
        net: Called,
        objective: Objective,
        empty: Tensor,
        policy: Policy,
        control: nn.Module | None = None,
        show: Shown | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.policy, self.show = objective, policy, show
        self.empty = empty.to(policy.device)
        self.control = control
        self._net = (net,) if control is not None else None  # frozen: no part of what is wrapped, synchronised or saved
        if control is None:
            self.net = net

    @property
    def denoiser(self) -> Called:
        """Return the model's net."""
        return self._net[0] if self._net is not None else self.net

    def forward(self, batch: Batch, turn: str = "") -> Tensor:
        """Return each row's loss, (b,), float32."""
        return self.losses(batch, self.objective.draw(batch.seeds, batch.rows["latent"].shape[1:]))

    def losses(self, batch: Batch, draws: Draws) -> Tensor:
        """Return each row's loss for what was drawn, (b,), float32."""
        rows = {name: tensor.to(self.policy.device) for name, tensor in batch.rows.items()}
        noised, tokens = self.objective.noised(rows["latent"].float(), draws), rows["tokens"]
        if self.training:
            drops = draws.drops.to(tokens.device).view(-1, 1, 1)
            tokens = torch.where(drops, self.empty.to(tokens), tokens)  # b n d
        x, tokens = placed(noised.x, self.policy), tokens.to(self.policy.dtype)
        return losses(self._out(replace(batch, rows=rows), x, noised.t, tokens), noised)

    def _out(self, batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return the net's output under the control, (b c h w)."""
        shown = None if self.show is None else self.show(batch, x, t, tokens)
        if isinstance(shown, Stream):
            return self._beside(shown, x, t, tokens)
        if isinstance(shown, Tensor):
            tokens, shown = torch.cat([tokens, shown.to(tokens)], dim=1), None  # b n+m d
        added = {} if shown is None else _named(shown)
        return self.denoiser(x, t, encoder_hidden_states=tokens, return_dict=False, **added)[0]

    def _beside(self, stream: Stream, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return the output of the net with another one beside its blocks, (b c h w)."""
        net, added = self.denoiser, None
        if isinstance(net, ToldNet):
            tokens, added = net.told(x, tokens)
            net = net.net
        assert isinstance(net, UNet2DConditionModel), "streams go beside a UNet's blocks"
        return evaluate(net, x, t, tokens, streams=(stream,), added=added)


def _named(residuals: Residuals) -> dict[str, tuple[Tensor, ...] | Tensor]:
    return {"down_block_additional_residuals": residuals.down, "mid_block_additional_residual": residuals.mid}


def objective_of(opening: Opening) -> Objective:
    """Return how the request wants the model's kind of net taught."""
    request, model = opening.request, opening.model
    return Objective(
        model.prediction,
        model.table,
        request.timesteps,
        request.min_snr,
        request.offset_noise,
        request.caption_dropout,
    )


def net_of(opening: Opening) -> UNet2DConditionModel:
    """Return the model's net. Raises WrongFamily where it is not of Stable Diffusion's kind."""
    net = opening.model.module
    if not isinstance(net, UNet2DConditionModel):
        raise WrongFamily(
            f"{opening.model.name} ({opening.model.family}) has a {type(net).__name__} for a net; the recipe "
            f"{opening.request.recipe} teaches under the UNets of Stable Diffusion's kind. Choose such a model."
        )
    return net


def frozen_net(opening: Opening, packs: bool = True) -> Called:
    """Return the model's net for a control to learn under: placed, frozen, its encoder packed where that is faster.

    `packs`: whether no gradient passes through the encoder.
    """
    if isinstance(opening.model.module, SD3Transformer2DModel):
        return _frozen_joint(opening, opening.model.module)
    net, memory = net_of(opening), opening.memory
    memory.place(net).requires_grad_(False)
    inference = Memory(replace(memory.policy, packs=packs and opening.packs))
    for part in (net.time_embedding, net.down_blocks, net.mid_block):
        inference.pack(part)
    install(net)
    if opening.request.checkpointing:
        net.enable_gradient_checkpointing()
    return called_alike(net)


def _frozen_joint(opening: Opening, net: SD3Transformer2DModel) -> JointNet:
    joint = JointNet(opening.memory.place(net).requires_grad_(False))
    if opening.request.checkpointing:
        joint.enable_gradient_checkpointing()
    return joint
