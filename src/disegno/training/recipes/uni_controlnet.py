"""Uni-ControlNet's local adapter (Zhao et al. 2023): any of seven conditions, learned together on the same pictures.

Each condition is dropped with a chance of one half; in a tenth of the rows all are kept, in a tenth none. The original:
rate 1e-5, batches of 4, half of the captions left out (`caption_dropout`), one epoch of ten million pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from disegno.controls._uni_nets import FeatureExtractor
from disegno.controls._xs_new import draw
from disegno.controls.uni_controlnet import LocalAdapter, open_local
from disegno.core.errors import RequestError
from disegno.diffusion.call import Residuals
from disegno.memory import build_empty
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, net_of, objective_of, placed, residuals
from disegno.training.encoder import copy_encoder, masters_of
from disegno.training.joining import name_of
from disegno.training.layers import install
from disegno.training.lora import mask_seed
from disegno.training.recipe import OF_LORA, About, Opening
from disegno.training.result import save_control, told
from disegno.weights.uni_controlnet_files import (
    CONDITIONS,
    CONTENT,
    GLOBAL_PREFIX,
    MECHANISM,
    Local,
    originals_of,
    read_uni,
)

ABOUT = About(
    summary="Uni-ControlNet's local adapter: any of seven conditions at once",
    wants=("latent", "condition", "tokens"),
    several=True,
    joins=True,
    exact=True,
    unlike=("sd2", "sdxl", "sd3"),
    unused=(*OF_LORA, "base"),
)
RATE = 1e-5
KEEP_ALL, DROP_ALL, DROP_EACH = 0.1, 0.1, 0.5
_FEATURES = (192, 256, 384, 512)  # of the extractor, beside Stable Diffusion 1.5's first width of 320


@dataclass(frozen=True)
class UniLearner:
    """A local adapter in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    tasks: tuple[str, ...]
    family: str
    content: Mapping[str, Tensor]

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter's file, under the published names, with the global one of the file that it began from."""
        tensors = originals_of(_sorted(dict(weights or self.turns[0].parameters)))
        tensors |= {GLOBAL_PREFIX + name: tensor for name, tensor in self.content.items()}
        tasks = (*self.tasks, *((CONTENT,) if self.content else ()))
        words = told(facts, MECHANISM, self.family, tasks=" ".join(tasks))
        save_control(path, tensors, words, layout="ldm")


class Taught(nn.Module):
    """The local adapter's parts: what trains."""

    def __init__(self, adapter: LocalAdapter) -> None:
        super().__init__()
        self.net, self.features, self.norms = adapter.net, adapter.extractor, adapter.norms


def open(opening: Opening) -> UniLearner:
    """Return the adapter, new or gone on with. Raises RequestError for a condition that is none of the seven."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    if unknown := sorted(set(opening.tasks) - CONDITIONS.keys()):
        raise RequestError(
            f"Uni-ControlNet has no condition {', '.join(unknown)}; its conditions are {', '.join(CONDITIONS)}. Name"
            " the data by them, as in --data canny=pairs/canny --data seg=pairs/seg."
        )
    adapter = _adapter(opening)
    taught = Taught(adapter).requires_grad_(True)
    install(taught)
    if request.checkpointing:
        adapter.net.enable_gradient_checkpointing()

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
        for name, tensor in adapter.maps(placed(stack_of(batch, module.training), memory.policy)).items():
            norm, _, part = name.rpartition(".")
            setattr(adapter.net.get_submodule(norm), part, tensor)  # for longer than this call: blocks may run again
        return residuals(adapter.net, x, t, tokens)

    module = Denoising(frozen_net(opening), objective_of(opening), opening.empty, memory.policy, taught, show)
    turn = Turn("control", _named(taught), request.rate or RATE)
    content = None if opening.start is None else read_uni(opening.start).content
    return UniLearner(module.train(), (turn,), opening.tasks, opening.model.family, content or {})


def stack_of(batch: Batch, drops: bool) -> Tensor:
    """Return the conditions of a batch as one stack, (b 21 h w), in [0, 1]; absent and dropped ones are zero."""
    shown = {task: batch.rows[name_of(task)] for task in CONDITIONS if name_of(task) in batch.rows}
    zero = torch.zeros_like(next(iter(shown.values())))
    stack = torch.stack([shown.get(task, zero) for task in CONDITIONS], dim=1).float() / 255  # b 7 3 h w
    if drops:
        kept = torch.stack([kept_of(Generator().manual_seed(mask_seed(seed, 0))) for seed in batch.seeds])
        stack = stack * kept.to(stack.device).view(*kept.shape, 1, 1, 1)
    return stack.flatten(1, 2)


def kept_of(generator: Generator) -> Tensor:
    """Return which of the seven conditions a row keeps, (7,) of 0 and 1."""
    draws = torch.rand(1 + len(CONDITIONS), generator=generator)
    if draws[0] < KEEP_ALL:
        return torch.ones(len(CONDITIONS))
    if draws[0] < KEEP_ALL + DROP_ALL:
        return torch.zeros(len(CONDITIONS))
    return (draws[1:] >= DROP_EACH).float()


def _named(taught: Taught) -> dict[str, nn.Parameter]:
    """Return the parameters: the encoder's by diffusers' names, `features.*`, `norms.*`."""
    parts = {"": taught.net, "features.": taught.features, "norms.": taught.norms}
    return {f"{prefix}{name}": p for prefix, part in parts.items() for name, p in part.named_parameters()}


def _sorted(tensors: Mapping[str, Tensor]) -> Local:
    """Return the parameters as the parts of a file."""
    features = {n.removeprefix("features."): t for n, t in tensors.items() if n.startswith("features.")}
    norms: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("norms."):
            norm, _, part = name.removeprefix("norms.").partition(".")
            norms.setdefault(norm.replace("/", "."), {})[part] = tensor
    own = {n: t for n, t in tensors.items() if not n.startswith(("features.", "norms."))}
    return Local(own, features, norms)


def _adapter(opening: Opening) -> LocalAdapter:
    masters = masters_of(opening.memory)
    if opening.start is not None:
        local = read_uni(opening.start).local
        if local is None:
            raise RequestError(f"{opening.start.name} has no local adapter to go on from. Name a file that has one.")
        return open_local(opening.start.name, local, opening.model, masters)
    return open_local("The new adapter", _new(opening), opening.model, masters)


def _new(opening: Opening) -> Local:
    """Return a new adapter: the model's encoder, features that start at zero, and modulations drawn at random."""
    generator = Generator().manual_seed(opening.request.seed)
    net = copy_encoder(net_of(opening), opening.memory, generator, with_hint=False)
    widths = tuple(net.config["block_out_channels"])
    features = [max(16, own * widths[0] // 320 // 8 * 8) for own in _FEATURES[: len(widths)]]
    extractor = build_empty(lambda: FeatureExtractor(3 * len(CONDITIONS), features)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in extractor.items()}
    drawn = {
        name: torch.zeros(shape) if name.startswith("zero_convs.") else draw(name, shapes, generator)
        for name, shape in shapes.items()
    }
    encoder, norms = dict[str, Tensor](net.state_dict()), dict[str, dict[str, Tensor]]()
    for level, width in enumerate(features):
        for which in ("norm1", "norm2"):
            norm = f"down_blocks.{level}.resnets.0.{which}"
            channels = len(encoder.pop(f"{norm}.weight"))
            del encoder[f"{norm}.bias"]
            own = {f"conv_{k}.weight": (channels, width, 3, 3) for k in ("gamma", "beta")}
            own |= {f"conv_{k}.bias": (channels,) for k in ("gamma", "beta")}
            norms[norm] = {name: draw(name, own, generator) for name in own}
    return Local(encoder, drawn, norms)
