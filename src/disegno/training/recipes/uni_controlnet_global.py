"""Uni-ControlNet's global adapter (Zhao et al. 2023, 3.3): what CLIP sees in a picture, as tokens behind the text.

It learns from pairs whose condition is the picture itself (`disegno dataset build PHOTOS PAIRS --annotator none`),
under the CLIP of the settings, with which it must be used. In half of the rows CLIP has seen nothing, zeros. The
original: rate 1e-5, batches of 4, half of the captions left out (`caption_dropout`), and no local adapter meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.attention import FeedForward
from torch import Generator, Tensor

from disegno.controls._uni_nets import DROPOUTS, GlobalAdapter, global_of
from disegno.controls._xs_new import draw
from disegno.core.errors import WrongFamily
from disegno.memory import build_empty
from disegno.text.clip_vision import open_clip_vision
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, net_of, objective_of
from disegno.training.encoder import masters_of
from disegno.training.layers import install
from disegno.training.lora import mask_seed
from disegno.training.recipe import OF_LORA, About, Opening
from disegno.training.result import save_control, told
from disegno.weights.uni_controlnet_files import (
    CONDITIONS,
    CONTENT,
    GLOBAL_PREFIX,
    MECHANISM,
    UniFile,
    originals_of,
    read_uni,
)

ABOUT = About(
    summary="Uni-ControlNet's global adapter: a picture's content, as CLIP sees it",
    wants=("latent", "condition", "tokens"),
    exact=True,
    sees=True,
    task=CONTENT,
    unlike=("sd2", "sdxl", "sd3"),
    unused=(*OF_LORA, "base"),
)
RATE = 1e-5
NUM_TOKENS, WIDER = 4, 2  # behind the text; the middle's width in those of what CLIP gives
KEEP = 0.5  # the original's 0.1 always and 0.8 with a chance of a half


@dataclass(frozen=True)
class ContentLearner:
    """A global adapter in training. `local`: the local one's tensors, of the file that it began from."""

    module: Denoising
    turns: tuple[Turn, ...]
    family: str
    clip: str
    local: Mapping[str, Tensor]
    tasks: tuple[str, ...]

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter's file, under the published names; the local one stays in it where there was one."""
        own = {GLOBAL_PREFIX + name: t for name, t in (weights or self.turns[0].parameters).items()}
        words = told(facts, MECHANISM, self.family, tasks=" ".join(self.tasks), clip=self.clip)
        save_control(path, {**self.local, **own}, words, layout="ldm")


def open(opening: Opening) -> ContentLearner:
    """Return the adapter, new or gone on with. Raises WrongFamily where a file was made with another CLIP."""
    request, memory, masters = opening.request, opening.memory, masters_of(opening.memory)
    assert opening.empty is not None and opening.clip is not None
    vision = open_clip_vision(opening.clip, memory)
    file = None if opening.start is None else read_uni(opening.start)
    tensors = _tensors(opening, file, vision.width)
    net = masters.build(lambda: global_of(tensors), tensors, "The global adapter").requires_grad_(True)
    install(net)

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        seen = vision.seen(batch.rows["condition"].float() / 255).clone()  # b d; out of inference mode
        if module.training:
            seen = seen * _kept(batch.seeds).to(seen)
        shown = seen.to(memory.policy.device, memory.policy.dtype)
        made = tokens_of(net, shown, batch.seeds if module.training else ())
        return made.unflatten(1, (-1, tokens.shape[-1]))  # b m*d -> b m d

    frozen = frozen_net(opening, packs=False)
    module = Denoising(frozen, objective_of(opening), opening.empty, memory.policy, net, show)
    turn = Turn("control", dict(net.named_parameters()), request.rate or RATE)
    local, tasks = _beside(file)
    return ContentLearner(module.train(), (turn,), opening.model.family, opening.clip.name, local, (*tasks, CONTENT))


def _beside(file: UniFile | None) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return the local adapter's tensors of the file, and the conditions that it knows; none where there is none."""
    if file is None or file.local is None:
        return {}, ()
    told = tuple(task for task in file.words.get("disegno.tasks", "").split() if task != CONTENT)
    return originals_of(file.local), told or tuple(CONDITIONS)


def _kept(seeds: Sequence[int]) -> Tensor:
    """Return which rows are shown what CLIP saw, (b 1) of 0 and 1."""
    draws = [torch.rand(1, generator=Generator().manual_seed(mask_seed(seed, 0))) for seed in seeds]
    return (torch.stack(draws) < KEEP).float()


def tokens_of(net: GlobalAdapter, seen: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return all tokens in one vector, (b m*d). `seeds`: of the rows, by which activations are dropped; none: none."""
    h = _fed(net.ff1, net.norm1(seen), DROPOUTS[0], [mask_seed(seed, 1) for seed in seeds])
    return _fed(net.ff2, net.norm2(h), DROPOUTS[1], [mask_seed(seed, 2) for seed in seeds])


def _fed(layer: FeedForward, x: Tensor, dropout: float, seeds: Sequence[int]) -> Tensor:
    gated, _, last = layer.net
    h = gated(x)
    if seeds:
        masks = [torch.rand(h.shape[1:], generator=Generator().manual_seed(seed)) >= dropout for seed in seeds]
        h = h * torch.stack(masks).to(h) / (1 - dropout)
    return last(h)


def _tensors(opening: Opening, file: UniFile | None, seen: int) -> Mapping[str, Tensor]:
    """Return the file's adapter, or a new one, by names in the net."""
    if file is not None and file.content is not None:
        if (wanted := len(file.content["norm1.weight"])) != seen:
            raise WrongFamily(
                f"{opening.request.start} reads {wanted} numbers of a picture; the CLIP of the settings gives {seen}."
                " Name the CLIP that it was taught with in the setting clip."
            )
        return {name: tensor.float() for name, tensor in file.content.items()}
    width = int(net_of(opening).config["cross_attention_dim"])
    empty = build_empty(lambda: GlobalAdapter(seen, WIDER * seen, NUM_TOKENS * width)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.items()}
    generator = Generator().manual_seed(opening.request.seed)
    return {name: draw(name, shapes, generator) for name in shapes}
