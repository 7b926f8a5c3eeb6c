"""A style LoRA: the model's own net learns a style, a thing or a person from some pictures, in matrices of a few MB.

Hu et al. 2021, on every linear layer of the net's transformer blocks, as diffusers' and kohya's trainers have it; the
text encoders stay as they are. Files have kohya's names, of Stable Diffusion 3 diffusers': A1111, ComfyUI, diffusers
and this program read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.diffusion.objective import Draws
from disegno.loras.dialects import squashed
from disegno.loras.files import read_lora
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Called, Denoising, frozen_net, objective_of
from disegno.training.lora import UP, Lora, Turned, named_pairs, new_matrices, put_on, with_start
from disegno.training.recipe import About, Opening
from disegno.training.result import told
from disegno.weights.card import FileCard
from disegno.weights.finite import require_finite
from disegno.weights.identify import identify
from disegno.weights.keys.control import lora_names
from disegno.weights.modelspec import words_of
from disegno.weights.save import save_safetensors

ABOUT = About(
    summary="a style LoRA: a style, a thing or a person, from pictures and captions",
    wants=("latent", "tokens"),
    makes="lora",
    unused=("base",),
)
RATE = 1e-4
_BLOCK = "transformer_blocks."


class Styled(Denoising):
    """The denoiser with matrices on its layers, which look up the rows' seeds in `turned`."""

    turned: Turned

    def losses(self, batch: Batch, draws: Draws) -> Tensor:
        """Return each row's loss for what was drawn, (b,), float32."""
        self.turned.seeds = batch.seeds
        return super().losses(batch, draws)


@dataclass(frozen=True)
class StyleLearner:
    """A style LoRA in training. `modules`: the layers that have matrices."""

    module: Styled
    turns: tuple[Turn, ...]
    modules: tuple[str, ...]
    lora: Lora
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the LoRA's file."""
        own = dict(weights or self.turns[0].parameters)
        tensors = {name: t.detach().float() * (self.lora.scale if name.endswith(UP) else 1) for name, t in own.items()}
        require_finite(path.name, tensors)
        write_style(path, tensors, self.modules, self.family, replace(facts, annotator=None, params={}))


def open(opening: Opening) -> StyleLearner:
    """Return the LoRA, new or gone on with."""
    request = opening.request
    assert opening.empty is not None
    called = frozen_net(opening, packs=False)
    net, lora = inner_of(called), Lora(request.rank, request.alpha, request.lora_dropout)
    modules = layers_of(net)
    tensors = new_matrices(net, modules, lora, Generator().manual_seed(request.seed))
    if opening.start is not None:
        tensors = with_start(tensors, read_style(opening.start, modules), lora, opening.model.name)
    turned = Turned()
    put_on(net, modules, lora, {"": tensors}, turned)
    module = Styled(called, objective_of(opening), opening.empty, opening.memory.policy)
    module.turned = turned
    turn = Turn("lora", named_pairs(net, modules), request.rate or RATE)
    return StyleLearner(module.train(), (turn,), modules, lora, opening.model.family)


def inner_of(called: Called) -> nn.Module:
    """Return diffusers' own net of one that is called as all are."""
    inner = getattr(called, "net", None)
    return inner if isinstance(inner, nn.Module) else called


def layers_of(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the linear layers in the net's transformer blocks."""
    # a transformer's norms are worked out by linear layers, too: what they make is no feature
    named = ((name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name, _ in named if _BLOCK in name and ".norm" not in name)


# ---- files


def write_style(path: Path, tensors: Mapping[str, Tensor], modules: tuple[str, ...], family: str, facts: Facts) -> None:
    """Write the matrices (names as `lora_names` has them, alpha multiplied in), whole or not at all."""
    rank = len(tensors[lora_names(modules[0])[0]])
    named: dict[str, Tensor] = {}
    for module in modules:
        down, up = (tensors[name] for name in lora_names(module))
        if family == "sd3":
            named |= {f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}
        else:
            stem = f"lora_unet_{squashed(module)}"
            named |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            named[f"{stem}.alpha"] = torch.tensor(float(rank))
    words = told(facts, None, family, rank=str(rank))
    of_kohya = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    card = FileCard(path, "lora", "lora", family, name=facts.name, metadata=words | of_kohya)
    licence = {"modelspec.license": facts.licence} if facts.licence else {}
    save_safetensors(path, named, words_of(card, "") | licence)


def read_style(path: Path, modules: tuple[str, ...]) -> dict[str, Tensor]:
    """Return a file's matrices by the names that they train under, its scale multiplied in.

    Raises UnknownKind where it is no LoRA, KeyMismatch where it changes more than these layers.
    """
    card = identify(path)
    if (card.kind, card.mechanism) != ("lora", "lora"):
        raise UnknownKind(f"{path.name} is a {card.mechanism or card.kind}, and this goes on from a LoRA alone.")
    file, found = read_lora(card), dict[str, Tensor]()
    by_name = {("unet", squashed(module)): module for module in modules}
    if others := [name for _, name in file.modules if ("unet", name) not in by_name]:
        raise KeyMismatch(
            f"{path.name} has matrices on {len(others)} layers that are not taught here ({', '.join(others[:3])}): go"
            " on from a LoRA that this program made."
        )
    for (part, name), matrices in file.modules.items():
        assert part == "unet"
        down, up = (matrices[half].float().flatten(1) for half in ("lora_down", "lora_up"))
        scale = file.scale_of(part, name).of(matrices, len(down))
        found |= dict(zip(lora_names(by_name[part, name]), (down, up * scale), strict=True))
    return found
