"""T2I-Adapter (Mou et al. 2023): a small net that looks at the condition once, and never at the noisy picture.

Drawn at random, as wide as the model's levels: a fifth of a ControlNet's weights. Gradients pass through all of the
model's net, since it is steered from its first level on. The original: rate 1e-5, batch 8, ten rounds of 500,000 pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from disegno.controls.t2i_adapter import AdapterNet, T2iAdapter, layout_of, open_adapter
from disegno.diffusion.call import Stream
from disegno.memory import build_empty
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, net_of, objective_of, placed
from disegno.training.encoder import drawn, masters_of
from disegno.training.layers import install
from disegno.training.recipe import OF_LORA, About, Opening
from disegno.training.result import save_control, told
from disegno.weights.t2i_files import MECHANISM, originals_of, read_t2i

ABOUT = About(
    summary="T2I-Adapter: a small net that looks at the condition once",
    wants=("latent", "condition", "tokens"),
    exact=True,
    unlike=("sd3",),
    unused=(*OF_LORA, "base"),
)
RATE = 1e-4
BLOCKS = 2  # of a level


@dataclass(frozen=True)
class T2iLearner:
    """A T2I-Adapter in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter's file, under the published names."""
        tensors = originals_of(dict(weights or self.turns[0].parameters))
        save_control(path, tensors, told(facts, MECHANISM, self.family), layout="ldm")


def open(opening: Opening) -> T2iLearner:
    """Return the adapter, new or gone on with."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    net, places = _net(opening).requires_grad_(True), layout_of(opening.model).places
    install(net)

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Stream:
        features = net(placed(batch.rows["condition"].float() / 255, memory.policy))
        rows = torch.arange(len(x), device=x.device)
        return T2iAdapter(tuple(features), places, key="").stream(rows)

    frozen = frozen_net(opening, packs=False)
    module = Denoising(frozen, objective_of(opening), opening.empty, memory.policy, net, show)
    turn = Turn("control", dict(net.named_parameters()), request.rate or RATE)
    return T2iLearner(module.train(), (turn,), opening.model.family)


def _net(opening: Opening) -> AdapterNet:
    memory = masters_of(opening.memory)
    layout = layout_of(opening.model)
    if opening.start is not None:
        file = read_t2i(opening.start, len(layout.widths))
        return open_adapter(opening.start.name, file.tensors, opening.model, memory)
    net_of(opening)  # an adapter is added to a UNet's levels

    def make() -> AdapterNet:
        return AdapterNet(3, layout, BLOCKS, is_light=False)

    generator = Generator().manual_seed(opening.request.seed)
    return memory.build(make, drawn(build_empty(make), generator), "The new adapter")
