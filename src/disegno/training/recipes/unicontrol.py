"""UniControl (Qin et al. 2023): one ControlNet for several tasks, a stem for each, one task a batch.

A new one is taught as v1.1's program teaches: the HyperNet learns too. One that goes on from a file is taught with the
file's own forward; in v1.0's the HyperNet is frozen. The original: rate 1e-5, batches of 4, twelve tasks at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers import ControlNetModel
from torch import Generator, Tensor, nn
from torch.func import functional_call

from disegno.controls._modulation import ZERO, Version, folded_hint, folded_zeros, hint, scales
from disegno.controls._net import open_net
from disegno.controls._xs_new import draw
from disegno.controls.unicontrol import forward_of
from disegno.core.errors import RequestError
from disegno.diffusion.call import Residuals
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, net_of, objective_of, placed
from disegno.training.encoder import copy_encoder, masters_of
from disegno.training.layers import install
from disegno.training.recipe import OF_LORA, About, Opening
from disegno.training.result import save_control, told
from disegno.weights.unicontrol_files import (
    MECHANISM,
    TASKS,
    originals_of,
    own_shapes,
    read_unicontrol,
    stem_prefix,
)

ABOUT = About(
    summary="UniControl: one ControlNet for several tasks of its thirteen",
    wants=("latent", "condition", "tokens"),
    several=True,
    exact=True,
    unlike=("sd2", "sdxl", "sd3"),
    unused=(*OF_LORA, "base"),
)
RATE = 1e-5
NEW: Version = "v1.1"
_HIDDEN = 4  # the HyperNet's width, in widths of the first level: 1280 in Stable Diffusion 1.5
_FROZEN = ("task_id_", "input_hint_block_zeroconv_0.1.", "input_hint_block_zeroconv_1.1.")  # in v1.0's forward


class Taught(nn.Module):
    """The encoder, and what UniControl adds to it, by published names (with / for .)."""

    def __init__(self, net: ControlNetModel, own: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        self.parts = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(t) for name, t in own.items()})

    @property
    def own(self) -> dict[str, nn.Parameter]:
        """What is added, by published names."""
        return {name.replace("/", "."): part for name, part in self.parts.items()}


@dataclass(frozen=True)
class UniControlLearner:
    """A UniControl in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    taught: Taught
    tasks: tuple[str, ...]
    version: Version
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the control's file, under the published names."""
        now = {name: tensor.detach() for name, tensor in _named(self.taught).items()} | dict(weights or {})
        own = {name: now[name] for name in self.taught.own}
        encoder = {name: tensor for name, tensor in now.items() if name not in own}
        more = {"tasks": " ".join(self.tasks), "forward": self.version}
        save_control(path, originals_of(encoder, own), told(facts, MECHANISM, self.family, **more), layout="ldm")


def _named(taught: Taught) -> dict[str, nn.Parameter]:
    """Return all parameters by the names under which they train."""
    return dict(taught.net.named_parameters()) | taught.own


def open(opening: Opening) -> UniControlLearner:
    """Return the control, new or gone on with. Raises RequestError for a task that is none of the thirteen."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    _check_tasks(opening.tasks)
    taught, version = _taught(opening)
    net = taught.net.requires_grad_(True)
    install(net)
    if request.checkpointing:
        net.enable_gradient_checkpointing()
    feature = opening.empty[0].float().to(memory.policy.device)

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
        own = taught.own
        factors = scales(own, feature)
        factors = {n: f.detach() for n, f in factors.items()} if version == "v1.0" else factors
        weights = folded_hint(own, factors, list(TASKS).index(batch.task), version)
        features = hint(placed(batch.rows["condition"].float() / 255, memory.policy), weights)
        zeros = folded_zeros({n: p for n, p in net.named_parameters() if n.startswith(ZERO)}, factors)
        named = {"encoder_hidden_states": tokens, "controlnet_cond": features, "return_dict": False}
        down, mid = functional_call(net, zeros, (x, t), named, tie_weights=False)
        return Residuals(tuple(down), mid)

    module = Denoising(frozen_net(opening), objective_of(opening), opening.empty, memory.policy, taught, show)
    turn = Turn("control", _trained(taught, opening.tasks, version), request.rate or RATE)
    return UniControlLearner(module.train(), (turn,), taught, opening.tasks, version, opening.model.family)


def _check_tasks(tasks: Iterable[str]) -> None:
    if unknown := sorted(set(tasks) - TASKS.keys()):
        raise RequestError(
            f"UniControl has no task {', '.join(unknown)}; its tasks are {', '.join(TASKS)}. Name the data by them, as"
            " in --data canny=pairs/canny --data seg=pairs/seg."
        )


def _trained(taught: Taught, tasks: Iterable[str], version: Version) -> dict[str, nn.Parameter]:
    """Return what trains: all but the stems of other tasks, and what the version's forward leaves as it is."""
    others = tuple(stem_prefix(task) for task in TASKS if task not in set(tasks))
    frozen = (*others, *(_FROZEN if version == "v1.0" else ()))
    return {name: p for name, p in _named(taught).items() if not name.startswith(frozen)}


def _taught(opening: Opening) -> tuple[Taught, Version]:
    masters = masters_of(opening.memory)
    if opening.start is not None:
        file = read_unicontrol(opening.start)
        net = open_net(opening.start.name, file.encoder, opening.model, masters)
        own = {name: tensor.float() for name, tensor in file.own.items()}
        return masters.place(Taught(net, own)), forward_of(opening.start.name, file.words)
    generator = Generator().manual_seed(opening.request.seed)
    net = copy_encoder(net_of(opening), opening.memory, generator, with_hint=False)
    widths = [len(p) for name, p in net.named_parameters() if name.startswith(ZERO) and name.endswith(".weight")]
    assert opening.empty is not None
    first = int(net.config["block_out_channels"][0])
    shapes = own_shapes(widths, first, opening.empty.shape[-1], _HIDDEN * first)
    return masters.place(Taught(net, {name: draw(name, shapes, generator) for name in shapes})), NEW
