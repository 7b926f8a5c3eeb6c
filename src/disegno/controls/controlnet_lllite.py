"""ControlNet-LLLite (kohya-ss): small nets that tell a UNet's layers of a drawing, by adding to what these are given.

Published for Stable Diffusion XL: the queries, keys and values of the encoder's and the middle's self-attentions, and
the queries of their cross-attentions. The drawing is embedded once; a step asks every net, for what it adds depends on
the layer's input too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from disegno.controls._depths import depths_of
from disegno.controls._lllite_net import LayerNet, Told, build
from disegno.controls._net import weight_of
from disegno.controls.base import Body, Condition, Host, Layers, block_layers, in_order, key_of
from disegno.core.errors import KeyMismatch, WrongFamily
from disegno.diffusion.call import Call, Shift
from disegno.memory import Memory
from disegno.packing import LAYERS
from disegno.weights.card import FileCard
from disegno.weights.keys.ldm import unet_originals
from disegno.weights.lllite_files import MECHANISM, PREFIX, LlliteFile, read_lllite

families = ("sd1", "sd2", "sdxl", "diorama")
_ELSEWHERE = ("attn2.to_k", "attn2.to_v", "time_emb_proj")  # what is given no places of a picture


def recognises(card: FileCard) -> bool:
    """Return whether the file is a ControlNet-LLLite."""
    return card.mechanism == MECHANISM


@dataclass(frozen=True, eq=False)
class LlliteControl:
    """A prepared drawing. `told`: of each layer, by its name in the net; `depths`: the residual that it counts as."""

    told: Mapping[str, Told]
    depths: Mapping[str, int]
    num_residuals: int
    key: str
    sees_x: bool = True
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with every row's layers told of the drawing."""
        rows = torch.arange(len(call.rows), device=call.x.device)
        own = Shift(self.told, self.depths, self.num_residuals, rows)
        return replace(call, shifts=(*call.shifts, own))


@dataclass(frozen=True)
class LlliteController:
    """A ControlNet-LLLite's weights, open. `places`: name of a layer in the net -> its net's in the file."""

    name: str
    annotator: str | None
    nets: nn.ModuleDict
    places: Mapping[str, str]
    depths: Mapping[str, int]
    num_residuals: int
    fingerprint: str

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh: the blocks that it acts in."""
        return block_layers(self.places)

    @torch.no_grad()
    def prepare(self, condition: Condition) -> LlliteControl:
        """Return the control for one condition."""
        image = (condition.image * 2 - 1).to(weight_of(self.nets))
        told = {layer: _told(self.nets[name], image) for layer, name in self.places.items()}
        key = key_of(MECHANISM, self.fingerprint, condition.key)
        return LlliteControl(told, self.depths, self.num_residuals, key)


def _told(net: nn.Module, image: Tensor) -> Told:
    assert isinstance(net, LayerNet)
    return Told(net, net.embed(image))


def open(path: Path, backbone: Host, memory: Memory) -> LlliteController:
    """Return the ControlNet-LLLite in this file. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    file = read_lllite(path)
    places = _places(path.name, file, backbone)
    nets = memory.build(lambda: build(file.sizes), file.tensors, path.name)
    found = depths_of(backbone.net)
    depths = {layer: found.of(layer) for layer in places}
    annotator = file.words.get("disegno.annotator") or file.words.get("modelspec.preprocessor") or None
    return LlliteController(path.stem, annotator, nets, places, depths, found.num_residuals, file.sha256)


def _names(net: nn.Module) -> dict[str, str]:
    """Return the net's layers by both of their names without dots, the original's and diffusers'."""
    found = in_order(name for name, layer in net.named_modules() if isinstance(layer, LAYERS))
    kept = {f"{name}.weight": name for name in found if not name.endswith(_ELSEWHERE)}
    originals = {other.removesuffix(".weight"): kept[name] for name, other in unet_originals(kept).items()}
    return {name.replace(".", "_"): layer for name, layer in [*originals.items(), *((n, n) for n in kept.values())]}


def _places(name: str, file: LlliteFile, backbone: Body) -> dict[str, str]:
    """Return the layers that a file tells of the drawing, in the net's order -> its own names for them.

    Raises WrongFamily where the net has no such layer, or one of another width; KeyMismatch where it has one twice.
    """
    names, found = _names(backbone.net), dict[str, str]()
    for own, sizes in file.sizes.items():
        layer = names.get(own.removeprefix(PREFIX))
        if layer is None:
            raise WrongFamily(_unfit(name, backbone, f"it has a net for {own[:100]}, a layer that the model has not"))
        if layer in found:
            raise KeyMismatch(f"{name} has two nets for {layer}: {found[layer]} and {own}. Fetch it again.")
        weight: Tensor = backbone.net.get_submodule(layer).weight  # pyright: ignore[reportAssignmentType]
        if (weight.ndim == 4, weight.shape[1]) != (sizes.is_conv, sizes.width):
            kinds = [f"a {'convolution' if n == 4 else 'linear layer'} of {width}" for n, width in (
                (weight.ndim, weight.shape[1]), (4 if sizes.is_conv else 2, sizes.width))]  # fmt: skip
            raise WrongFamily(_unfit(name, backbone, f"of {own[:100]} the model has {kinds[0]}, the file {kinds[1]}"))
        found[layer] = own
    return {layer: found[layer] for layer in in_order(dict.fromkeys(names.values())) if layer in found}


def _unfit(name: str, backbone: Body, why: str) -> str:
    return (
        f"{name} does not fit the open model {backbone.name} ({backbone.family}): {why}. Choose a control that was made"
        f" for {backbone.family}, of this size."
    )
