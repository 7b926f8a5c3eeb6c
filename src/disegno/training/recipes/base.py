"""CtrLoRA's pretraining: a Base ControlNet from many conditions, each with its own LoRA (Xu et al. 2024, section 3.2).

All of the base trains at every step, and the LoRA of the one condition that the batch shows: what the conditions share
goes into the base, what is peculiar to each into its LoRA. The original: 9 conditions, 700,000 steps of 32, rate 1e-5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path

from diffusers import SD3Transformer2DModel
from torch import Generator, Tensor

from disegno.annotators import ANNOTATORS
from disegno.controls.ctrlora import Base, base_of, open_base
from disegno.diffusion.call import Residuals
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, net_of, objective_of, placed, residuals
from disegno.training.encoder import copy_encoder, masters_of
from disegno.training.joint import copy_blocks
from disegno.training.layers import install
from disegno.training.lora import Lora, LoraNet, new_matrices, open_lora_net
from disegno.training.recipe import About, Opening
from disegno.training.result import condition_path, save_control, told
from disegno.weights.ctrlora_files import BASE_MECHANISM, MECHANISM
from disegno.weights.finite import require_finite

ABOUT = About(
    summary="a Base ControlNet: many conditions at once, a LoRA each",
    wants=("latent", "condition_latent", "tokens"),
    several=True,
    beside=True,
    exact=True,
)
RATE = 1e-5


def matrix_name(task: str, name: str) -> str:
    """Return what a task's LoRA matrix is called among the parameters."""
    return f"loras.{task}.{name}"


@dataclass(frozen=True)
class BaseLearner:
    """A Base ControlNet and the LoRAs of its conditions, in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    base: Base
    trained: LoraNet
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the base to `path`, and each condition's file beside it: NAME_TASK.safetensors."""
        tensors = dict(weights or self.turns[0].parameters)
        require_finite(path.name, tensors)
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("loras.")}
        save_control(path, own, told(facts, BASE_MECHANISM, self.family))
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        for task, pairs in self.trained.pairs.items():
            matrices = {name: tensors[matrix_name(task, name)] for name in pairs}
            condition = self.trained.in_file(matrices) | {name: own[name] for name in self.base.own}
            words = told(_of_task(facts, task), MECHANISM, self.family, base_sha256=digest, **self._rank)
            save_control(condition_path(path, task), condition, words)

    @property
    def _rank(self) -> dict[str, str]:
        return {"rank": str(self.trained.lora.rank)}


def _of_task(facts: Facts, task: str) -> Facts:
    """Return what one condition's file says; a task that is called as an annotator is made by it."""
    annotator = task if task in ANNOTATORS else facts.annotator
    return replace(facts, name=task or facts.name, annotator=annotator, metrics={})


def open(opening: Opening) -> BaseLearner:
    """Return the base, all of it trainable: from a base's file, or from the encoder of the model's net."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    generator = Generator().manual_seed(request.seed)
    base = _base(opening, generator)
    base.net.requires_grad_(True)
    lora = Lora(request.rank, request.alpha, request.lora_dropout)
    trained = open_lora_net(
        base, lora, {task: new_matrices(base.net, base.modules, lora, generator) for task in opening.tasks}
    )
    install(trained.net)
    if request.checkpointing:
        trained.net.enable_gradient_checkpointing()

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
        trained.turn(batch.task, batch.seeds)
        return residuals(trained.net, placed(batch.rows["condition_latent"], memory.policy), t, tokens)

    module = Denoising(frozen_net(opening), objective_of(opening), opening.empty, memory.policy, trained.net, show)
    loras = {matrix_name(task, name): p for task, pairs in trained.pairs.items() for name, p in pairs.items()}
    turn = Turn("base", dict(base.net.named_parameters()) | loras, request.rate or RATE)
    return BaseLearner(module.train(), (turn,), base, trained, opening.model.family)


def _base(opening: Opening, generator: Generator) -> Base:
    path = opening.start or opening.base
    if path is not None:
        return open_base(path, opening.model, masters_of(opening.memory))
    if isinstance(opening.model.module, SD3Transformer2DModel):
        return base_of(opening.request.name, "", copy_blocks(opening.model.module, opening.memory))
    net = copy_encoder(net_of(opening), opening.memory, generator, with_hint=False)
    return base_of(opening.request.name, "", net)
