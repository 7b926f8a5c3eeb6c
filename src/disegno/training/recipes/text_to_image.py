"""The net of a model, finetuned on pictures and captions (Rombach et al. 2022, section 3.3), conditions aside."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from disegno.core.errors import RequestError
from disegno.training.base import Facts, Turn
from disegno.training.denoising import Denoising, net_of, objective_of
from disegno.training.encoder import masters_of
from disegno.training.layers import install
from disegno.training.recipe import OF_LORA, About, Model, Opening
from disegno.training.told_net import called_alike
from disegno.training.whole_model import check_writable, write_model

ABOUT = About(
    summary="the model's own net, from pictures and captions",
    wants=("latent", "tokens"),
    exact=True,
    saves="folder",
    unlike=("sd2", "sd3"),
    unused=(*OF_LORA, "base"),
)
RATE = 1e-5


@dataclass(frozen=True)
class NetLearner:
    """A model's net in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    model: Model

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the whole model, a folder, with this net."""
        write_model(path, self.model, "unet", dict(weights or self.turns[0].parameters), facts)


def open(opening: Opening) -> NetLearner:
    """Return the net, all of it trainable."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    if opening.start is not None:
        raise RequestError("This recipe goes on from a model: name it with model, not with start.")
    check_writable(opening.model)
    net = masters_of(memory).place(net_of(opening)).requires_grad_(True)
    install(net)
    if request.checkpointing:
        net.enable_gradient_checkpointing()
    module = Denoising(called_alike(net), objective_of(opening), opening.empty, memory.policy)
    turn = Turn("net", dict(net.named_parameters()), request.rate or RATE)
    return NetLearner(module.train(), (turn,), opening.model)
