"""Control-LoRA (Stability AI): a ControlNet as low-rank differences to the encoder of the model that is open.

The file's matrices, biases, norms, hint block and zero convolutions are its own; all other weights are the model's,
which are in memory once: the net reads them where they sit. A style LoRA on the model is therefore on its control, too,
as in sd-webui-controlnet, which binds the model's layers, and in ComfyUI, which takes the patched weights.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from disegno.controls._borrowed import Borrowed, Place, Shape, bias_of, places_in, shapes_of
from disegno.controls._hinted import ControlNetController, Whole, controller_of
from disegno.controls._net import config_of, make_net, require_colours
from disegno.controls.base import Body, Host, key_of
from disegno.core.errors import WrongFamily
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.control_lora_files import MECHANISM, ControlLoraFile, Pair, read_control_lora
from disegno.weights.keys.control import HINT_PREFIX, is_zero_conv

families = ("sd1", "sd2", "sdxl", "diorama")

_ENCODER = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")


def recognises(card: FileCard) -> bool:
    """Return whether the file is a Control-LoRA."""
    return card.mechanism == MECHANISM


def open(path: Path, backbone: Host, memory: Memory) -> ControlNetController:
    """Return the Control-LoRA of this file on this model. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    file = read_control_lora(path)
    net = open_net(path.name, file, backbone, memory)
    whole = Whole(net, {}, file.words, key_of(MECHANISM, file.fingerprint, backbone.fingerprint))
    return controller_of(path, whole, memory)


def open_net(name: str, file: ControlLoraFile, backbone: Body, memory: Memory) -> ControlNetModel:
    """Return the control net, what is its own frozen and placed, the rest read from the model's net.

    `name` is for the messages. Raises UnknownKind, WrongFamily, KeyMismatch.
    """
    if not isinstance(backbone.net, UNet2DConditionModel):
        raise WrongFamily(
            f"{name} is a difference to a UNet's encoder, and {backbone.name} ({backbone.family}) has none. Choose a"
            f" control that was made for {backbone.family}."
        )
    require_colours(name, file.whole)
    places = {at: place for at, place in places_in(backbone.net).items() if f"{at}.".startswith(_ENCODER)}
    own = {key: tensor for key, tensor in file.whole.items() if key.startswith(HINT_PREFIX) or is_zero_conv(key)}
    shapes = shapes_of(places)
    shapes["conv_in.weight"] = _of_latents(shapes["conv_in.weight"], backbone.net)
    config = config_of(name, {key: torch.empty(s, device="meta") for key, s in shapes.items()} | own, backbone)
    _check_fits(name, file, shapes, backbone)
    tensors = _completed(file, places)

    def built() -> ControlNetModel:
        net = make_net(config)
        for at, place in places.items():
            pair = file.pairs.get(at)
            if f"{at}.weight" not in tensors:
                layer = Borrowed(net.get_submodule(at), place, pair.rank if pair else 0, f"{at}.bias" in tensors)
                net.set_submodule(at, layer)
        return net

    return memory.build(built, tensors, name)


def _of_latents(shape: Shape, net: UNet2DConditionModel) -> Shape:
    """Return the shape of the first convolution of a control, which sees latents alone."""
    return (shape[0], int(net.config["out_channels"]), *shape[2:])


def _check_fits(name: str, file: ControlLoraFile, shapes: Mapping[str, Shape], backbone: Body) -> None:
    """Raise WrongFamily where a difference is to no layer of the model, or to one of other sizes."""
    for at, pair in file.pairs.items():
        theirs = shapes.get(f"{at}.weight")
        ours = (pair.up.shape[0], prod(pair.down.shape[1:]))
        if theirs is None or ours != (theirs[0], prod(theirs[1:])):
            has = "has no such layer" if theirs is None else f"has it as {theirs}"
            raise WrongFamily(
                f"{name} does not fit the open model {backbone.name} ({backbone.family}): its difference to {at} is"
                f" {ours}, and the model {has}. Choose a control that was made for this model's kind, or fetch the"
                " file again."
            )


def _completed(file: ControlLoraFile, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Return the net's own tensors: the file's, and the half of a layer that it has only one half of, the model's."""
    tensors = dict(file.whole)
    for at, place in places.items():
        names, bias = (f"{at}.weight", f"{at}.bias"), bias_of(place.layer)
        if names[0] in tensors and names[1] not in tensors and bias is not None:
            tensors[names[1]] = bias.detach()
        elif names[1] in tensors and names[0] not in tensors and isinstance(place.layer, nn.GroupNorm | nn.LayerNorm):
            tensors[names[0]] = place.layer.weight.detach()
    return tensors | _halves(file, places)


def _halves(file: ControlLoraFile, places: Mapping[str, Place]) -> dict[str, Tensor]:
    return {
        f"{at}.{half}.weight": tensor
        for at, pair in file.pairs.items()
        for half, tensor in zip(("down", "up"), _shaped(pair, places[at].layer), strict=True)
    }


def _shaped(pair: Pair, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return down and up as a layer's own: matrices, or convolutions (r i kh kw) and (o r 1 1)."""
    kernel = getattr(layer, "kernel_size", None)
    if kernel is None:
        return pair.down.flatten(1), pair.up
    return pair.down.reshape(pair.rank, -1, *kernel), pair.up[:, :, None, None]
