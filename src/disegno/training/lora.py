"""LoRA matrices on linear layers: of a Base ControlNet one pair for each condition that learns, of a model's net one.

Hu et al. 2021; Xu et al. 2024, section 3: y = W x + b + s up(down x), with s = alpha / rank. Files know no alpha: what
is saved has it multiplied into `up`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from diffusers import ControlNetModel
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from disegno.controls._joint import JointControl
from disegno.controls.ctrlora import Base
from disegno.core.errors import KeyMismatch
from disegno.weights.keys.control import LORA_MARK, lora_names

UP = f"{LORA_MARK}up.weight"


@dataclass(frozen=True)
class Lora:
    """How large the matrices are. `alpha`: unset, the rank. `dropout`: the share of down(x) that is dropped."""

    rank: int
    alpha: float | None = None
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """Return what up(down x) is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass
class Turned:
    """What all LoRA layers of a net look up while it runs: the rows' seeds, for dropout."""

    seeds: tuple[int, ...] = ()


class Matrix(nn.Module):
    """One LoRA matrix, (out in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class Pair(nn.Module):
    """A module's two LoRA matrices: `down` (r in), `up` (out r)."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down, self.up = Matrix(down), Matrix(up)


class LoraLinear(nn.Module):
    """A linear layer with a pair of LoRA matrices for each condition, one of them in use."""

    def __init__(self, linear: nn.Linear, pairs: Sequence[Pair], lora: Lora, turned: Turned, number: int) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias: nn.Parameter | None = linear.bias
        self.pairs = nn.ModuleList(pairs)
        self.lora, self.turned, self.number = lora, turned, number
        self.turn(0)

    def turn(self, pair: int) -> None:
        """Put a pair to use. It lies in a tuple: a compiled net sees other tensors then, not another program."""
        self._now = tuple(self.pairs[pair].get_parameter(f"{half}.weight") for half in ("down", "up"))

    def forward(self, x: Tensor) -> Tensor:
        """Return y, (b ... out), of x, (b ... in); in the dtype of x."""
        down, up = (matrix.to(x.dtype) for matrix in self._now)
        low = F.linear(x, down)  # b ... in -> b ... r
        if self.training and self.lora.dropout:
            low = low * self._kept(low)
        bias = self.bias if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias) + F.linear(low, up) * self.lora.scale  # b ... out

    def _kept(self, low: Tensor) -> Tensor:
        """Return the mask of (b ... r), each row drawn from its own seed: the same again where it is recomputed."""
        share = 1 - self.lora.dropout
        masks = [
            torch.rand(low.shape[1:], generator=Generator().manual_seed(mask_seed(seed, self.number))) < share
            for seed in self.turned.seeds
        ]
        return torch.stack(masks).to(low) / share


def mask_seed(row: int, number: int) -> int:
    """Return the seed of a row's mask in the layer of this number, 63 bits."""
    digest = hashlib.blake2b(f"{row} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class LoraNet:
    """A Base ControlNet with LoRA matrices. `pairs`: for each task its matrices, float32, by their names in a file."""

    net: ControlNetModel | JointControl
    lora: Lora
    pairs: Mapping[str, Mapping[str, nn.Parameter]]
    turned: Turned = field(default_factory=Turned)
    layers: Sequence[LoraLinear] = ()

    def turn(self, task: str, seeds: tuple[int, ...] = ()) -> None:
        """Put a task's matrices to use, for rows with these seeds."""
        self.turned.seeds = seeds
        pair = list(self.pairs).index(task)
        for layer in self.layers:
            layer.turn(pair)

    def in_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a condition's tensors as a file has them, alpha multiplied in."""
        scale = self.lora.scale
        return {name: t * scale if name.endswith(UP) and scale != 1 else t for name, t in tensors.items()}


def new_matrices(net: nn.Module, modules: Sequence[str], lora: Lora, generator: Generator) -> dict[str, Tensor]:
    """Return new matrices by name: `down` drawn from N(0, 1/r^2), the original's deviation, and `up` zero."""
    tensors: dict[str, Tensor] = {}
    for module in modules:
        out_width, in_width = net.get_parameter(f"{module}.weight").shape
        down, up = lora_names(module)
        tensors[down] = torch.randn(lora.rank, in_width, generator=generator) / lora.rank
        tensors[up] = torch.zeros(out_width, lora.rank)
    return tensors


def with_start(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], lora: Lora, what: str) -> dict[str, Tensor]:
    """Return the tensors with those of `start`, of a file, in the places of their namesakes. Raises KeyMismatch."""
    wrong = [f"{n} {tuple(t.shape)}" for n, t in start.items() if n not in tensors or tensors[n].shape != t.shape]
    if wrong:
        raise KeyMismatch(
            f"{', '.join(wrong[:3])}: {len(wrong)} tensors to start from have no place in matrices of rank "
            f"{lora.rank} on {what}. Choose the rank that they were taught with, and their own base or model."
        )
    return {**tensors, **{name: t / lora.scale if name.endswith(UP) else t for name, t in start.items()}}


def open_lora_net(base: Base, lora: Lora, matrices: Mapping[str, Mapping[str, Tensor]]) -> LoraNet:
    """Return a net of new modules around the base's very parameters, with each task's matrices (task -> name -> it).

    The base is not changed, and may serve other conditions meanwhile.
    """
    net = deepcopy(base.net, {id(parameter): parameter for parameter in base.net.parameters()})
    turned = Turned()
    layers = put_on(net, base.modules, lora, matrices, turned)
    pairs_of = {task: named_pairs(net, base.modules, i) for i, task in enumerate(matrices)}
    return LoraNet(net, lora, pairs_of, turned, layers)


def put_on(
    net: nn.Module, modules: Sequence[str], lora: Lora, matrices: Mapping[str, Mapping[str, Tensor]], turned: Turned
) -> list[LoraLinear]:
    """Return the layers that now stand in for these modules of the net, with each task's matrices."""
    device = next(net.parameters()).device
    layers: list[LoraLinear] = []
    for number, module in enumerate(modules):
        parent, _, child = module.rpartition(".")
        linear = net.get_submodule(module)
        assert isinstance(linear, nn.Linear)
        pairs = [
            Pair(*(tensors[name].detach().to(device, torch.float32, copy=True) for name in lora_names(module)))
            for tensors in matrices.values()
        ]
        layers.append(LoraLinear(linear, pairs, lora, turned, number))
        setattr(net.get_submodule(parent), child, layers[-1])
    return layers


def named_pairs(net: nn.Module, modules: Sequence[str], pair: int = 0) -> dict[str, nn.Parameter]:
    """Return a pair's matrices of all layers, by their names in a file."""
    named: dict[str, nn.Parameter] = {}
    for module in modules:
        for half, name in zip(("down", "up"), lora_names(module), strict=True):
            named[name] = net.get_parameter(f"{module}.pairs.{pair}.{half}.weight")
    return named


@dataclass(frozen=True)
class Trainable:
    """A condition in training: a net around a base, with the condition's own zero convolutions and norms.

    `parameters`: those and its matrices, float32, by the names of its file: all that an optimiser may change.
    """

    lora_net: LoraNet
    parameters: Mapping[str, nn.Parameter]

    @property
    def net(self) -> ControlNetModel | JointControl:
        return self.lora_net.net

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters' values now, as `save_condition` wants them."""
        return self.lora_net.in_file({name: p.detach().clone() for name, p in self.parameters.items()})


def open_trainable(
    base: Base, lora: Lora, generator: Generator, start: Mapping[str, Tensor] | None = None
) -> Trainable:
    """Return a new condition: new matrices, the base's own zero convolutions and norms.

    `start`: a file's tensors to begin from instead, by name; their matrices must have this rank. Raises KeyMismatch.
    The base is not changed by training, and may serve other conditions meanwhile.
    """
    own = {name: tensor.float() for name, tensor in base.own.items()}
    tensors = with_start(own | new_matrices(base.net, base.modules, lora, generator), start or {}, lora, base.name)
    opened = open_lora_net(base, lora, {"": tensors})
    for name in base.own:
        module, _, last = name.rpartition(".")
        fresh = tensors[name].detach().to(base.own[name].device, torch.float32, copy=True)
        opened.net.get_submodule(module).register_parameter(last, nn.Parameter(fresh))
    own_parameters = {name: opened.net.get_parameter(name) for name in base.own}
    return Trainable(opened, own_parameters | dict(opened.pairs[""]))
