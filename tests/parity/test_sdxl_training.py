"""Teaching under Stable Diffusion XL against a plain loop: diffusers' own classes, told as its pipelines tell them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call

from disegno import Settings, Studio
from disegno.backbones import miniature_sdxl as mini
from disegno.core.teach import make_teach_request
from disegno.training.base import Batch
from disegno.training.denoising import Denoising
from disegno.training.miniature import Discs, write_base
from disegno.training.opening import Opened, open_training
from disegno.weights.keys.control import lora_names
from disegno.weights.load import load_file

pytestmark = pytest.mark.parity

HEIGHT, WIDTH = 64, 96
UNLIKE = ("sample_size", "out_channels", "up_block_types")
RATES = {"base": 1e-3, "ctrlora": 1e-3, "full": 1e-3, "controlnet": 1e-3, "text_to_image": 1e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    mini.write_folder(folder / "xl")
    write_base(folder / "base.safetensors", mini.SDXL)
    return folder


def _opened(folder: Path, recipe: str) -> Opened:
    tasks = ("filled", "rim") if recipe == "base" else ("",)
    base = {"base": "base"} if recipe in ("base", "ctrlora", "full") else {}
    more: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "rank": 4, "caption_dropout": 0.5, "buckets": False}
    data = tuple(f"{task}=x" if task else "x" for task in tasks)
    request = make_teach_request({"name": "x", "data": data, "model": "xl", "recipe": recipe, **base, **more})
    settings = Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu")
    pairs = {task: Discs(3, canvas=(WIDTH, HEIGHT), outline=task == "rim") for task in tasks}
    opening = open_training(request, pairs, {}, Studio(settings))
    while True:
        try:
            next(opening)
        except StopIteration as end:
            return end.value


def _batch(opened: Opened) -> Batch:
    rows = [opened.examples[i] for i in range(3)]
    tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return Batch(tensors, (11, 12, 13), opened.examples.task(0), 0)


def _shake(opened: Opened) -> None:
    """Leave no weight zero, so that gradients reach everything."""
    generator = torch.Generator().manual_seed(4)
    for parameter in opened.learner.turns[0].parameters.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


Weights = Mapping[str, Tensor]
Shown = Callable[[Tensor, Tensor, Tensor, dict[str, Tensor], Batch], tuple[Any, Any]]


def _config() -> dict[str, Any]:
    return {name: value for name, value in mini.SDXL.unet_config.items() if name not in UNLIKE}


def _of_condition(base: Weights, own: Weights) -> dict[str, Tensor]:
    """Return a ControlNet's weights with a condition's merged in."""
    merged = {name: own.get(name, tensor) for name, tensor in base.items()}
    for name in base:
        down, up = lora_names(name.removesuffix(".weight"))
        if down in own:
            merged[name] = base[name] + own[up] @ own[down]
    return merged


def _controlled(weights: Weights, with_hint: bool) -> Shown:
    net = ControlNetModel(**_config())
    if not with_hint:
        net.add_module("controlnet_cond_embedding", nn.Identity())

    def residuals(x: Tensor, t: Tensor, tokens: Tensor, told: dict[str, Tensor], batch: Batch) -> tuple[Any, Any]:
        shown = x if with_hint else batch.rows["condition_latent"]
        hint = batch.rows["condition"].float() / 255 if with_hint else torch.zeros(())
        named = {"controlnet_cond": hint, "added_cond_kwargs": told, "return_dict": False}
        return functional_call(net, dict(weights), (shown, t, tokens), named)

    return residuals


def _plain_loss(opened: Opened, unet: UNet2DConditionModel, weights: Weights | None, shown: Shown | None) -> Tensor:
    """Return each row's loss: noised, dropped, told and evaluated with diffusers' classes alone."""
    batch, module = _batch(opened), cast(Denoising, opened.learner.module)
    draws = module.objective.draw(batch.seeds, batch.rows["latent"].shape[1:])
    assert draws.drops.any() and not draws.drops.all()
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    t = draws.level
    x = scheduler.add_noise(batch.rows["latent"], draws.noise, cast(Any, t))
    said = batch.rows["tokens"] * (~draws.drops).view(-1, 1, 1)  # what says nothing is zeros
    tokens, pooled = said[:, :-1], said[:, -1, : mini.WIDTHS["clip_g"]]
    ids = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]] * len(x))
    told = {"text_embeds": pooled, "time_ids": ids}
    down, mid = (None, None) if shown is None else shown(x, t, tokens, told, batch)
    named = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    out = functional_call(unet, dict(weights or {}), (x, t, tokens), {"added_cond_kwargs": told, **named})[0]
    return (out - draws.noise).square().flatten(1).mean(1)


def _copies(opened: Opened) -> dict[str, Tensor]:
    turn = opened.learner.turns[0]
    return {name: p.detach().clone().requires_grad_() for name, p in turn.parameters.items()}


@pytest.mark.parametrize("recipe", RATES)
def test_losses_and_gradients_are_those_of_a_plain_loop(folder: Path, recipe: str) -> None:
    opened = _opened(folder, recipe)
    _shake(opened)
    own, base = _copies(opened), load_file(folder / "base.safetensors")
    unet = UNet2DConditionModel.from_pretrained(folder / "xl" / "unet")
    if recipe == "text_to_image":
        theirs = _plain_loss(opened, unet, own, None)
    elif recipe == "controlnet":
        theirs = _plain_loss(opened, unet, None, _controlled(own, with_hint=True))
    elif recipe == "ctrlora":
        theirs = _plain_loss(opened, unet, None, _controlled(_of_condition(base, own), with_hint=False))
    else:
        whole = {name: own[name] for name in base}
        matrices = {n.removeprefix("loras.filled."): own[n] for n in own if n.startswith("loras.filled.")}
        theirs = _plain_loss(opened, unet, None, _controlled(_of_condition(whole, matrices), with_hint=False))
    turn = opened.learner.turns[0]
    ours = opened.learner.module(_batch(opened), turn.name)
    # float32, merged weights against sums: losses of about 1, gradients of up to 1
    torch.testing.assert_close(ours.detach(), theirs.detach(), atol=1e-5, rtol=1e-5)
    theirs.mean().backward()
    ours.mean().backward()
    moved = 0
    for name, parameter in turn.parameters.items():
        expected = own[name].grad
        if name.startswith("loras.rim."):
            assert expected is None and parameter.grad is None
            continue
        assert expected is not None and parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=2e-3, msg=name)
        moved += bool(expected.abs().max() > 0)
    assert moved > 0.9 * sum(not name.startswith("loras.rim.") for name in own)


def test_a_new_control_begins_as_the_models_encoder(folder: Path) -> None:
    opened, unet = _opened(folder, "controlnet"), load_file(folder / "xl/unet/diffusion_pytorch_model.safetensors")
    own = opened.learner.turns[0].parameters
    assert own.keys() == ControlNetModel(**_config()).state_dict().keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in unet.items() if name in own)
    assert {"add_embedding.linear_1.weight", "conv_in.weight", "mid_block.attentions.0.norm.weight"} <= own.keys()
    assert not any(p.any() for name, p in own.items() if name.startswith("controlnet_down_blocks."))
