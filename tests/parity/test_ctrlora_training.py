"""Losses, gradients and one optimiser step against the original program (xyfJASON/ctrlora @b4422b4), in float32."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from disegno.cli.main import main
from disegno.controls import ctrlora
from disegno.controls.base import Condition
from disegno.core.errors import KeyMismatch
from disegno.diffusion.call import Residuals
from disegno.diffusion.objective import Draws, Objective
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import scaled_linear_table
from disegno.memory import FULL_PRECISION, Memory
from disegno.training.base import Batch
from disegno.training.denoising import Denoising, residuals
from disegno.training.layers import install
from disegno.training.lora import Lora, Trainable, open_trainable
from disegno.training.result import save_control
from disegno.weights.ctrlora_files import ConditionInfo, read_condition, save_condition
from disegno.weights.keys.control import LORA_MARK, is_adapted, lora_names
from disegno.weights.keys.ldm import layout_of, unet_names

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parent.parent / "golden"
MEMORY = Memory(FULL_PRECISION)
Reader = Callable[[str], dict[str, Tensor]]

# float32: the original and a diffusers build agree to 1.2e-7 on the loss of 1.38, to 5.1e-8 on gradients of up to 0.023
LOSS = {"atol": 1e-6, "rtol": 0.0}
GRADIENT = {"atol": 1e-6, "rtol": 1e-3}
LEARNING_RATE = 1e-3


def _write(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path)
    return path


def _loss(host: Any, trained: Trainable, io: dict[str, Tensor], checkpointing: bool = False) -> Tensor:
    """Return the loss as the loop gets it: the module of a recipe, with the original's draws in place of its own."""
    latents = host.encode_image(io["hint_image"])
    torch.testing.assert_close(latents, io["out.hint_latent"], atol=1e-5, rtol=0.0)
    install(trained.net)
    net = deepcopy(host.net)
    install(net)
    if checkpointing:
        trained.net.enable_gradient_checkpointing()
        net.enable_gradient_checkpointing()

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
        return residuals(trained.net, batch.rows["condition_latent"], t, tokens)

    objective = Objective(PREDICTIONS["epsilon"], scaled_linear_table())
    module = Denoising(net, objective, io["context"][0], FULL_PRECISION, trained.net, show)
    rows = {"latent": io["x0"], "condition_latent": latents, "tokens": io["context"]}
    seeds = tuple(range(len(io["x0"])))
    draws = Draws(io["timesteps"].long(), io["noise"], torch.zeros(len(seeds), dtype=torch.bool))
    torch.testing.assert_close(objective.noised(io["x0"], draws).x, io["out.x_noisy"], atol=1e-6, rtol=1e-6)
    losses = module.losses(Batch(rows, seeds, "", 0), draws)
    assert losses.shape == (len(seeds),)
    return losses.mean()


def _names_in_net(trained: Trainable) -> dict[str, str]:
    """Return name in the net -> name in the file, of all that trains."""
    names = {id(parameter): name for name, parameter in trained.parameters.items()}
    return {name: names[id(p)] for name, p in trained.net.named_parameters() if id(p) in names}


def _expected(io: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return diffusers name -> tensor, of the fixture's tensors under this part."""
    stored = {key.removeprefix(part): tensor for key, tensor in io.items() if key.startswith(part)}
    modules = json.loads((GOLDEN / "ctrlora.json").read_text("utf-8"))["loras_dict_index_to_module"]
    plain = {_in_place(name, modules): tensor for name, tensor in stored.items()}
    names = unet_names(plain, layout_of([*modules, *(f"input_blocks.{b}.0.op" for b in (2,))]))
    return {names[name]: tensor for name, tensor in plain.items()}


def _in_place(name: str, modules: list[str]) -> str:
    if not name.startswith("loras_dict."):
        return name
    _, _, index, half, _ = name.split(".")
    return f"{modules[int(index)]}{LORA_MARK}{half}.weight"


@pytest.fixture
def base(tmp_path: Path, golden: Reader, ctrlora_host: Any) -> ctrlora.Base:
    return ctrlora.open_base(_write(tmp_path / "base.safetensors", golden("ctrlora__basecn")), ctrlora_host, MEMORY)


@pytest.fixture
def finetuned(base: ctrlora.Base, tmp_path: Path, golden: Reader) -> Trainable:
    novel = read_condition(_write(tmp_path / "novel.safetensors", golden("ctrlora__lora_novel"))).tensors
    start = {name: tensor for name, tensor in novel.items() if LORA_MARK in name}
    return open_trainable(base, Lora(4), torch.Generator().manual_seed(0), start)


def test_finetuning(finetuned: Trainable, golden: Reader, ctrlora_host: Any) -> None:
    io = golden("ctrlora__train")
    optimiser = torch.optim.AdamW(finetuned.parameters.values(), lr=LEARNING_RATE, weight_decay=0.01)
    loss = _loss(ctrlora_host, finetuned, io)
    torch.testing.assert_close(loss.detach(), io["out.finetune.loss"], **LOSS)
    loss.backward()
    gradients = _expected(io, "out.finetune.grad.")
    assert gradients.keys() == finetuned.parameters.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(finetuned.parameters[name].grad, expected, **GRADIENT)
    optimiser.step()
    for name, expected in _expected(io, "out.finetune.after_step.").items():
        # Adam's first step is lr times the gradient's sign: comparable only where the gradient is well away from zero
        clear = gradients[name].abs() > 1e-6
        torch.testing.assert_close(
            finetuned.parameters[name].detach()[clear], expected[clear], atol=0.05 * LEARNING_RATE, rtol=0.0
        )


def test_only_the_condition_is_trained(
    base: ctrlora.Base, finetuned: Trainable, golden: Reader, ctrlora_host: Any
) -> None:
    before = {name: tensor.clone() for name, tensor in finetuned.net.state_dict().items()}
    own = {name: tensor.clone() for name, tensor in base.net.state_dict().items()}
    _loss(ctrlora_host, finetuned, golden("ctrlora__train")).backward()
    torch.optim.AdamW(finetuned.parameters.values(), lr=LEARNING_RATE).step()
    changed = {name for name, tensor in finetuned.net.state_dict().items() if not torch.equal(tensor, before[name])}
    names = _names_in_net(finetuned)
    assert changed == names.keys() and set(names.values()) == finetuned.parameters.keys()
    assert all(is_adapted(name) for name in finetuned.parameters)
    assert all(torch.equal(tensor, own[name]) for name, tensor in base.net.state_dict().items())
    assert all(p.grad is None for p in (*base.net.parameters(), *ctrlora_host.net.parameters()))


def test_the_base_is_not_copied(base: ctrlora.Base, finetuned: Trainable) -> None:
    """Whatever is not the condition's own is the same memory."""
    theirs = dict(base.net.named_parameters())
    shared = {name: p for name, p in finetuned.net.named_parameters() if name not in _names_in_net(finetuned)}
    assert shared.keys() == theirs.keys() - base.own.keys()
    assert all(p is theirs[name] for name, p in shared.items())


def test_pretraining_reaches_the_base_too(tmp_path: Path, golden: Reader, ctrlora_host: Any) -> None:
    io = golden("ctrlora__train")
    path = _write(tmp_path / "pretrain.safetensors", golden("ctrlora__pretrain_full"))
    base = ctrlora.open_base(path, ctrlora_host, MEMORY)
    canny = read_condition(path, "canny").tensors
    trained = open_trainable(base, Lora(4), torch.Generator().manual_seed(0), canny)
    trained.net.requires_grad_(True)
    loss = _loss(ctrlora_host, trained, io)
    torch.testing.assert_close(loss.detach(), io["out.pretrain.loss"], **LOSS)
    loss.backward()
    for name, expected in _expected(io, "out.pretrain.grad.").items():
        parameter = trained.parameters[name] if name in trained.parameters else trained.net.get_parameter(name)
        torch.testing.assert_close(parameter.grad, expected, **GRADIENT)


def test_a_new_condition_starts_as_the_base(base: ctrlora.Base, golden: Reader, ctrlora_host: Any) -> None:
    """It gives what the base gives, since `up` is zero; `down` has the original's spread, drawn by the generator."""
    trained = open_trainable(base, Lora(8), torch.Generator().manual_seed(7))
    again = open_trainable(base, Lora(8), torch.Generator().manual_seed(7))
    assert all(torch.equal(trained.parameters[name], p) for name, p in again.parameters.items())
    down = torch.cat([trained.parameters[lora_names(module)[0]].flatten() for module in base.modules])
    assert abs(float(down.detach().std()) * 8 - 1) < 0.02  # standard deviation 1/8, from 18 thousand draws
    io = golden("ctrlora__io")
    latents, t = io["out.hint_latent_mode_1"], io["timesteps"].float()
    plain = base.residuals(ctrlora.merged(base, base.own), latents, t, io["context"])
    torch.testing.assert_close(residuals(trained.net, latents, t, io["context"]).mid.detach(), plain.mid)
    assert all(isinstance(p, nn.Parameter) and p.dtype == torch.float32 for p in trained.parameters.values())


def test_training_and_drawing_agree(
    base: ctrlora.Base, finetuned: Trainable, tmp_path: Path, golden: Reader, ctrlora_host: Any
) -> None:
    """What is saved draws as it trained, on the very base that is in training, and does not see later steps."""
    io = golden("ctrlora__train")
    with torch.no_grad():
        latents = ctrlora_host.encode_image(io["hint_image"][:1])
        trained = residuals(finetuned.net, latents, io["timesteps"][:1].float(), io["context"][:1])
    save_condition(tmp_path / "c.safetensors", finetuned.tensors(), ConditionInfo("c", "sd1"))
    with torch.no_grad():
        for parameter in finetuned.parameters.values():
            parameter.zero_()
    controller = ctrlora.open(tmp_path / "c.safetensors", ctrlora_host, MEMORY, base=base)
    control = controller.prepare(Condition(io["hint_image"][:1], "c"))
    drawn = control(ctrlora_host.call(io["x0"][:1], io["timesteps"][:1], io["context"][:1])).residuals
    assert drawn is not None
    for ours, theirs in zip((*drawn.down, drawn.mid), (*trained.down, trained.mid), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)  # merged and unmerged sums, in float32


def test_a_start_of_another_rank_is_refused(base: ctrlora.Base) -> None:
    name = lora_names(base.modules[0])[0]
    with pytest.raises(KeyMismatch, match="have no place in matrices of rank 4"):
        open_trainable(base, Lora(4), torch.Generator(), {name: torch.zeros(5, 32)})


def test_gradient_checkpointing_gives_the_same_gradients(
    finetuned: Trainable, golden: Reader, ctrlora_host: Any
) -> None:
    io = golden("ctrlora__train")
    finetuned.net.train()
    finetuned.net.enable_gradient_checkpointing()
    _loss(ctrlora_host, finetuned, io, checkpointing=True).backward()
    for name, expected in _expected(io, "out.finetune.grad.").items():
        torch.testing.assert_close(finetuned.parameters[name].grad, expected, **GRADIENT)


def test_a_published_file_can_be_made_of_it(finetuned: Trainable, tmp_path: Path, golden: Reader) -> None:
    """`disegno models convert --to ldm`: exactly the names of a published file, and every number as it was taught."""
    words = {"disegno.mechanism": "ctrlora", "disegno.family": "sd1", "disegno.name": "p"}
    save_control(tmp_path / "own.safetensors", finetuned.tensors(), words)
    done = CliRunner().invoke(
        main, ["models", "convert", str(tmp_path / "own.safetensors"), str(tmp_path / "p.safetensors"), "--to", "ldm"]
    )
    assert done.exit_code == 0, done.output
    published = {key: tuple(tensor.shape) for key, tensor in golden("ctrlora__lora_novel").items()}
    with safe_open(tmp_path / "p.safetensors", "pt") as file:
        assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == published  # noqa: SIM118
    again = read_condition(tmp_path / "p.safetensors").tensors
    assert again.keys() == finetuned.parameters.keys()
    assert all(torch.equal(again[name], parameter) for name, parameter in finetuned.parameters.items())
