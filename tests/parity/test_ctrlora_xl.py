"""CtrLoRA-XL against its rule, written with diffusers' net and peft's own layers: names, residuals and pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature_sdxl as mini
from disegno.backbones import sdxl
from disegno.backbones.miniature import draw
from disegno.controls import ctrlora_xl
from disegno.controls.base import Condition
from disegno.core.errors import KeyMismatch, UnknownKind, UnknownName, WrongFamily
from disegno.diffusion.call import Call, Row
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.convert import convert
from disegno.weights.identify import identify

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")]

MEMORY = Memory(FULL_PRECISION)
TASKS = ("canny", "APT")
HEIGHT, WIDTH = 64, 80


def _net() -> Any:
    """Return the authors' net: the condition's latents go through a convolution of their own, beside conv_in."""
    unlike = ("sample_size", "out_channels", "up_block_types")
    config = {name: value for name, value in mini.SDXL.unet_config.items() if name not in unlike}
    net = ControlNetModel(**config)
    net.add_module("controlnet_cond_embedding", nn.Conv2d(4, 64, 3, padding=1))
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"])
    for task in TASKS:
        inject_adapter_in_model(lora, net, adapter_name=task)
    net.load_state_dict(draw(net, 5))
    return net.eval().requires_grad_(False)


def _use(net: Any, task: str) -> Any:
    for module in net.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(task)
    return net


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace("controlnet_cond_embedding.", "conv_in_condition."): tensor.contiguous()
        for name, tensor in net.state_dict().items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    mini.write_folder(folder / "xl")
    save_file(_tensors(_net()), folder / "ctrlora-xl-base.safetensors")
    return folder


def test_the_file_is_known(folder: Path) -> None:
    card = identify(folder / "ctrlora-xl-base.safetensors")
    assert (card.kind, card.mechanism, card.family, card.tasks) == ("control", "ctrlora-xl", "sdxl", ("APT", "canny"))
    with pytest.raises(UnknownKind, match="cannot be renamed"):
        convert(card.path, folder / "other.safetensors", "ldm")


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_its_residuals_are_those_of_the_rule(folder: Path, task: str) -> None:
    host, net = sdxl.open(folder / "xl", MEMORY), _use(_net(), task)
    generator = torch.Generator().manual_seed(1)
    image, x = torch.rand(1, 3, HEIGHT, WIDTH, generator=generator), torch.randn(2, 4, 8, 10, generator=generator)
    states, t = host.encode_text(["a red car", "blur"]), torch.tensor([7.0, 981.0])
    controller = ctrlora_xl.open(folder / "ctrlora-xl-base.safetensors", host, MEMORY)
    rows = tuple(Row(i, positive=True, text=str(i), progress=0.0) for i in range(2))
    call = controller.prepare(Condition(image, "k", task=task))(
        Call(x, t, states.tokens, rows, host.evaluate, states.pooled)
    )
    latent = host.vae.encode(image * 2 - 1, return_dict=False)[0].mode() * host.vae.config["scaling_factor"]
    ids = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]] * 2)
    told = {"text_embeds": states.pooled, "time_ids": ids}
    down, mid = net(x, t, states.tokens, latent, added_cond_kwargs=told, return_dict=False)
    ours = call.residuals
    assert ours is not None
    for a, b in zip((*ours.down, ours.mid), (*down, mid), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)  # merged before, added after: float32


def test_the_weights_of_a_task_are_kept_as_long_as_a_control_of_it(folder: Path) -> None:
    host = sdxl.open(folder / "xl", MEMORY)
    controller = ctrlora_xl.open(folder / "ctrlora-xl-base.safetensors", host, MEMORY)
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    one, other = (controller.prepare(Condition(image, key, task="canny")) for key in "ab")
    assert one.merged.weights is other.merged.weights
    del one
    assert list(controller.live) == ["canny"]
    del other
    controller.prepare(Condition(image, "k", task="APT"))
    assert not list(controller.live)


def test_it_draws_what_the_unit_says_it_is(folder: Path) -> None:
    studio = Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))

    def drawn(**fields: Any) -> bytes:
        unit = ControlUnit(name="ctrlora-xl-base", image=str(folder / "picture.png"), annotate="none", **fields)
        request = Request(prompt="a car", model="xl", seed=1, steps=2, width=64, height=64, controls=(unit,))
        result = list(generate(request, studio=studio))[-1]
        assert isinstance(result, Result)
        return result.images[0].tobytes()

    Image.radial_gradient("L").convert("RGB").save(folder / "picture.png")
    assert len({drawn(task="canny"), drawn(task="APT"), drawn(task="canny", strength=0.0)}) == 3
    with pytest.raises(UnknownName, match="task"):
        drawn(task="pose")


def test_what_does_not_belong_is_refused(folder: Path, tmp_path: Path) -> None:
    host, tensors = sdxl.open(folder / "xl", MEMORY), _tensors(_net())
    halves = {name: t for name, t in tensors.items() if ".lora_B." not in name}
    bare = {name: t for name, t in tensors.items() if ".lora_" not in name}
    wide = tensors | {"conv_in_condition.weight": torch.zeros(64, 9, 3, 3)}
    module = next(name for name in tensors if name.endswith("to_k.lora_A.canny.weight"))
    spoilt = tensors | {module: torch.zeros(4, 7)}
    for given, said in ((halves, "one LoRA matrix of two"), (bare, "Base ControlNet alone"), (wide, "another kind"),
                        (spoilt, "matrices of canny do not fit")):  # fmt: skip
        save_file(given, tmp_path / "a.safetensors")
        with pytest.raises(KeyMismatch, match=said):
            ctrlora_xl.open(tmp_path / "a.safetensors", host, MEMORY)
    refiner = mini.write_folder(tmp_path / "refiner", mini.Sdxl(refines=True))
    with pytest.raises(WrongFamily, match="the width of the text"):
        ctrlora_xl.open(folder / "ctrlora-xl-base.safetensors", sdxl.open(refiner, MEMORY), MEMORY)
