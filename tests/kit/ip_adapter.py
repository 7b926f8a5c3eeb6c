"""IP-Adapters in miniature: each published form, for a net's cross-attentions and the CLIP of kit/clip.py."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from disegno.backbones.miniature import draw
from disegno.controls._ip_nets import IpNet
from disegno.controls.base import Body
from disegno.controls.ip_adapter import places_of
from disegno.weights.ip_adapter_files import PROJECTION, Form
from disegno.weights.save import save_safetensors
from kit.clip import HIDDEN, SEEN

FORMS: tuple[Form, ...] = ("plain", "plus", "full")
TOKENS, QUERIES, INNER = 4, 6, 64


def projection(form: Form, width: int, seen: int = SEEN, hidden: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    """Return what decides the sizes of a projection: some of its names and shapes."""
    if form == "plain":
        return {"proj.weight": (TOKENS * width, seen)}
    if form == "full":
        return {"proj.0.weight": (hidden, hidden)}
    blocks = {f"layers.{i}.0.to_q.weight": (INNER, INNER) for i in range(4)}
    blocks |= {f"layers.{i}.1.1.weight": (4 * INNER, INNER) for i in range(4)}
    return blocks | {"latents": (1, QUERIES, INNER), "proj_in.weight": (INNER, hidden)}


def tensors(form: Form, host: Body, seed: int = 0) -> dict[str, Tensor]:
    """Return an adapter's tensors for a net, drawn, by their published names."""
    layers = [host.net.get_submodule(f"{name}.to_k") for name in places_of(host).names]
    pairs = [(str(2 * i + 1), layer.out_features, layer.in_features) for i, layer in enumerate(layers)]
    shapes = {PROJECTION + name: shape for name, shape in projection(form, pairs[0][2]).items()}
    drawn = draw(IpNet(form, shapes, pairs), seed)
    # queries of the size of a signal; values that a picture shows
    return {name: t * 8 if name.endswith("latents") else t for name, t in drawn.items()}


def nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors as a .bin has them."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def write(path: Path, flat: Mapping[str, Tensor]) -> Path:
    """Return `path`, now an adapter: safetensors, or by its suffix .bin a torch checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        torch.save(nested(flat), path)
    else:
        save_safetensors(path, flat, {})
    return path
