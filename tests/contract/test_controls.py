"""What every control mechanism must do, whichever it is. A new mechanism adds a row to MINIATURES."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from disegno.backbones import miniature_sdxl, sdxl
from disegno.backbones._cross_attention import reading
from disegno.backbones._layer_inputs import shifting
from disegno.backbones._lockstep import evaluate as lockstep
from disegno.backbones._self_attention import taking_up
from disegno.backbones.base import TextStates
from disegno.backbones.miniature import draw
from disegno.backbones.miniature_sd3 import SD3, VAE
from disegno.controls import (
    CONTROLS,
    control_lora,
    controlnet,
    controlnet_lllite,
    controlnet_sd3,
    controlnet_union,
    controlnet_xs,
    ctrlora,
    ctrlora_xl,
    ip_adapter,
    t2i_adapter,
    uni_controlnet,
    unicontrol,
)
from disegno.controls._uni_nets import FeatureExtractor, GlobalAdapter, Modulation
from disegno.controls._xs_new import new_xs
from disegno.controls.base import Condition, Control, Layered
from disegno.controls.colour_fix import open_colour_fix
from disegno.controls.reference import open_reference
from disegno.controls.strength import Use, Used, apply
from disegno.core.curve import parse_curve
from disegno.core.errors import ModelFileError, RequestError
from disegno.core.request import COLOUR_FIX, FILELESS, REFERENCE, ControlUnit
from disegno.diffusion.call import Call, Residuals, Row
from disegno.diffusion.patches import block_residuals
from disegno.diffusion.prediction import PREDICTIONS, Prediction
from disegno.diffusion.schedules import NoiseTable, scaled_linear_table
from disegno.diffusion.told import told_size
from disegno.engine.sharing import Sharing, kind_of
from disegno.memory import FULL_PRECISION, Memory
from disegno.training.lora import Lora, open_trainable
from disegno.weights.configs import told_config
from disegno.weights.ctrlora_files import ConditionInfo, save_condition
from disegno.weights.uni_controlnet_files import GLOBAL_PREFIX, Local, originals_of
from disegno.weights.unicontrol_files import originals_of as unicontrol_originals
from disegno.weights.unicontrol_files import own_shapes
from disegno.weights.xs_files import originals_of as xs_originals
from kit import control_lora as lora_kit
from kit import ip_adapter as ip_kit
from kit import lllite as lllite_kit
from kit.clip import write_clip

pytestmark = pytest.mark.contract

MEMORY = Memory(FULL_PRECISION)
SIZES = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}


@dataclass(frozen=True)
class TinyHost:
    """A backbone of the smallest size, with a VAE that only shrinks."""

    net: nn.Module
    family: str = "sd1"
    name: str = "tiny"
    fingerprint: str = "tiny"
    channels: int = 4
    text: int = 32
    pooled: int | None = None
    table: NoiseTable = field(default_factory=scaled_linear_table)
    prediction: Prediction = PREDICTIONS["epsilon"]

    def encode_image(self, images: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(images, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1).repeat(1, self.channels // 4, 1, 1)

    def encode_text(self, prompts: list[str]) -> TextStates:
        tokens = torch.ones(len(prompts), 7, 32)
        return TextStates(tokens, None, tuple(prompts))

    def evaluate(self, call: Call) -> Tensor:
        r = call.residuals
        if call.references:
            return taking_up(self.net, call, self.evaluate)
        if call.streams:
            return lockstep(self.net, call.x, call.t, call.tokens, r, call.streams)
        added = {} if r is None else {"down_block_additional_residuals": r.down, "mid_block_additional_residual": r.mid}
        with reading(self.net, call.image_prompts, call.x), shifting(self.net, call.shifts, call.x):
            return self.net(call.x, call.t, call.tokens, **added).sample


@dataclass(frozen=True)
class TinyTransformer(TinyHost):
    """The same with a transformer of six blocks, as Stable Diffusion 3 has it."""

    @property
    def vae(self) -> nn.Module:
        return AutoencoderKL(**VAE)

    def evaluate(self, call: Call) -> Tensor:
        added = call.residuals and block_residuals(call.residuals, call.x)
        assert call.pooled is not None
        return self.net(call.x, call.tokens, call.pooled, call.t, added, return_dict=False)[0]


@dataclass(frozen=True)
class TinySdxl(TinyHost):
    """SDXL's miniature: a whole backbone, whose net is told the pooled text and the sizes."""

    model: sdxl.Sdxl = field(kw_only=True)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)

    def evaluate(self, call: Call) -> Tensor:
        return self.model.evaluate(call)


@dataclass(frozen=True)
class TinyTold(TinyHost):
    """The same with a net that is told the pooled text and the size, as Stable Diffusion XL's is."""

    def evaluate(self, call: Call) -> Tensor:
        assert call.pooled is not None
        r, told = call.residuals, told_size(call.pooled, call.x)
        added = {} if r is None else {"down_block_additional_residuals": r.down, "mid_block_additional_residual": r.mid}
        return self.net(call.x, call.t, call.tokens, added_cond_kwargs=told, **added).sample


@dataclass(frozen=True)
class Opened:
    """A mechanism in miniature: two controls of it, and every weight that they could touch. `layers`: it weighs."""

    host: TinyHost
    controls: tuple[Control, Control]
    weights: Callable[[], dict[str, Tensor]]
    layers: int = 5
    controller: object = None


def _randomised(net: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator) * 0.1 + (t.ndim == 1 and "norm" in name and "weight" in name)
        for name, t in net.state_dict().items()
    }


def _conditions() -> tuple[Condition, Condition]:
    a, b = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).unbind()
    return Condition(a, "a"), Condition(b, "b")


def _controlnet(folder: Path, host: TinyHost) -> Opened:
    tensors = _randomised(ControlNetModel(**SIZES), seed=2)
    save_file(tensors, folder / "control.safetensors")
    controller = controlnet.open(folder / "control.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(
        host,
        (a, b),
        lambda: controller.net.state_dict() | controller.stem.state_dict(prefix="stem."),
        controller=controller,
    )


def _control_lora(folder: Path, host: TinyHost) -> Opened:
    assert isinstance(host.net, UNet2DConditionModel)
    lora_kit.write(folder / "control-lora.safetensors", host.net, 18)
    controller = control_lora.open(folder / "control-lora.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    weights = {"net": controller.net, "stem": controller.stem, "unet": host.net}
    return Opened(
        host,
        (a, b),
        lambda: {f"{n}.{k}": t for n, net in weights.items() for k, t in net.state_dict().items()},
        len(controller.net.controlnet_down_blocks) + 1,
        controller,
    )


def _ctrlora(folder: Path, host: TinyHost) -> Opened:
    tensors = _randomised(ControlNetModel(**SIZES), seed=3)
    save_file({n: t for n, t in tensors.items() if "cond_embedding" not in n}, folder / "base.safetensors")
    base = ctrlora.open_base(folder / "base.safetensors", host, MEMORY)
    opened: list[Control] = []
    controllers: list[object] = []
    for seed, condition in enumerate(_conditions()):
        adapter = open_trainable(base, Lora(4), torch.Generator().manual_seed(seed)).tensors()
        generator = torch.Generator().manual_seed(100 + seed)
        adapter = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in adapter.items()}
        save_condition(folder / f"{seed}.safetensors", adapter, ConditionInfo(str(seed)))
        controllers.append(controller := ctrlora.open(folder / f"{seed}.safetensors", host, MEMORY, base=base))
        opened.append(controller.prepare(condition))
    return Opened(host, (opened[0], opened[1]), base.net.state_dict, controller=controllers[0])


def _ctrlora_xl(folder: Path, _host: TinyHost) -> Opened:
    told = told_config({"add_embedding.linear_1.weight": torch.empty(1, 16 + 6 * 256)})
    net = UNet2DConditionModel(**SIZES, **told, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    host = TinyTold(net.eval().requires_grad_(False), "sdxl", pooled=16)
    tensors = _randomised(ControlNetModel(**SIZES, **told), seed=3)
    tensors = {n: t for n, t in tensors.items() if "cond_embedding" not in n}
    generator = torch.Generator().manual_seed(4)
    for module in [n.removesuffix(".weight") for n in tensors if n.endswith((".to_q.weight", ".to_v.weight"))]:
        own = tensors.pop(f"{module}.weight")
        tensors[f"{module}.base_layer.weight"] = own
        for task in ("canny", "depth"):
            tensors[f"{module}.lora_A.{task}.weight"] = 0.3 * torch.randn(4, own.shape[1], generator=generator)
            tensors[f"{module}.lora_B.{task}.weight"] = 0.3 * torch.randn(own.shape[0], 4, generator=generator)
    tensors["conv_in_condition.weight"] = 0.3 * torch.randn(32, 4, 3, 3, generator=generator)
    tensors["conv_in_condition.bias"] = torch.zeros(32)
    save_file(tensors, folder / "xl.safetensors")
    controller = ctrlora_xl.open(folder / "xl.safetensors", host, MEMORY)
    a, b = (
        controller.prepare(replace(condition, task=task))
        for condition, task in zip(_conditions(), ("canny", "depth"), strict=True)
    )
    return Opened(host, (a, b), controller.net.state_dict, controller=controller)


def _uni(folder: Path, host: TinyHost) -> Opened:
    drawn = _randomised(ControlNetModel(**SIZES), seed=4)
    replaced = {f"down_blocks.{i}.resnets.0.{norm}": (i, norm) for i in range(2) for norm in ("norm1", "norm2")}
    encoder = {
        name: tensor
        for name, tensor in drawn.items()
        if "cond_embedding" not in name and name.rpartition(".")[0] not in replaced
    }
    widths = {(0, "norm1"): 32, (0, "norm2"): 32, (1, "norm1"): 32, (1, "norm2"): 64}
    norms = {name: draw(Modulation(16, widths[place]), 5) for name, place in replaced.items()}
    tensors = originals_of(Local(encoder, draw(FeatureExtractor(21, (16, 16)), 6), norms))
    tensors |= {GLOBAL_PREFIX + name: tensor for name, tensor in draw(GlobalAdapter(12, 24, 128), 7).items()}
    save_file(tensors, folder / "uni.safetensors")
    controller = uni_controlnet.open(folder / "uni.safetensors", host, MEMORY)
    a, b = (
        controller.prepare(replace(condition, task=task))
        for condition, task in zip(_conditions(), ("canny", "seg"), strict=True)
    )
    local = controller.local
    assert local is not None
    return Opened(
        host,
        (a, b),
        lambda: dict(local.net.state_dict()) | local.extractor.state_dict(prefix="features."),
        controller=controller,
    )


def _unicontrol(folder: Path, host: TinyHost) -> Opened:
    drawn = _randomised(ControlNetModel(**SIZES), seed=8)
    encoder = {name: tensor for name, tensor in drawn.items() if "cond_embedding" not in name}
    generator = torch.Generator().manual_seed(9)
    shapes = own_shapes((32, 32, 32, 64), 32, feature=32, hidden=16)
    own = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(unicontrol_originals(encoder, own), folder / "unicontrol.safetensors")
    controller = unicontrol.open(folder / "unicontrol.safetensors", host, MEMORY)
    a, b = (
        controller.prepare(replace(condition, task=task))
        for condition, task in zip(_conditions(), ("canny", "inpainting"), strict=True)
    )
    return Opened(host, (a, b), controller.net.state_dict, controller=controller)


def _xs(folder: Path, host: TinyHost) -> Opened:
    net = new_xs(host.net, widths=(8, 16), generator=torch.Generator().manual_seed(10))
    drawn = {name: tensor + 0.05 for name, tensor in net.state_dict().items()}
    save_file(xs_originals(drawn), folder / "xs.safetensors")
    controller = controlnet_xs.open(folder / "xs.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), controller.net.state_dict, controller=controller)


def _t2i(folder: Path, host: TinyHost) -> Opened:
    save_file(draw(T2IAdapter(3, [32, 64], 2), 13), folder / "t2i.safetensors")
    controller = t2i_adapter.open(folder / "t2i.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), controller.net.state_dict, 2, controller)


def _sd3(folder: Path, _host: TinyHost) -> Opened:
    config = SD3.net_config | {"num_layers": 6}
    net = SD3Transformer2DModel(**config)
    fixed = {name: t for name, t in net.state_dict().items() if name.endswith("pos_embed.pos_embed")}
    net.load_state_dict(draw(net, 11) | fixed)
    host = TinyTransformer(net.eval().requires_grad_(False), "sd3", channels=16, text=128, pooled=96)
    own = {name: value for name, value in config.items() if name != "dual_attention_layers"}
    control = SD3ControlNetModel(**own | {"num_layers": 2})
    save_file(draw(control, 12) | fixed, folder / "sd3.safetensors")
    controller = controlnet_sd3.open(folder / "sd3.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), controller.net.state_dict, controller=controller)


def _ip_adapter(folder: Path, host: TinyHost) -> Opened:
    clip = write_clip(folder / "image_encoder", layers=2)
    path = ip_kit.write(folder / "ip.safetensors", ip_kit.tensors("plus", host, 13))
    controller = ip_adapter.open(path, host, MEMORY, clip=clip)
    a, b = (controller.prepare(condition) for condition in _conditions())
    weights = {"net": controller.net, "unet": host.net}
    return Opened(
        host,
        (a, b),
        lambda: {f"{n}.{k}": t for n, net in weights.items() for k, t in net.state_dict().items()},
        4,
        controller,
    )


def _lllite(folder: Path, host: TinyHost) -> Opened:
    places = {name: place for name, place in lllite_kit.SD1.items() if name != "input_blocks_3_1"}
    tensors = lllite_kit.tensors(host.net, lllite_kit.attended(host.net, places), 14)
    controller = controlnet_lllite.open(lllite_kit.write(folder / "lllite.safetensors", tensors), host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    nets = nn.ModuleDict({"own": controller.nets, "unet": host.net})
    return Opened(host, (a, b), nets.state_dict, 2, controller)


def _reference(_folder: Path, host: TinyHost) -> Opened:
    controller = open_reference(ControlUnit(name="reference-adain-attn"), host)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), host.net.state_dict)


def _colour_fix(_folder: Path, host: TinyHost) -> Opened:
    controller = open_colour_fix(ControlUnit(name=COLOUR_FIX, params={"variation": 2, "sharpness": 1}), host)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), host.net.state_dict)


XL = miniature_sdxl.Sdxl(unet=miniature_sdxl.THREE_LEVELS)


def _sdxl_host(folder: Path) -> TinySdxl:
    model = sdxl.open(miniature_sdxl.write_file(folder / "model.safetensors", XL), MEMORY)
    return TinySdxl(model.net, "sdxl", text=96, pooled=64, table=model.table, model=model)


def _controlnet_sdxl(folder: Path, _host: TinyHost) -> Opened:
    host, unlike = _sdxl_host(folder), ("sample_size", "out_channels", "up_block_types")
    config = {name: value for name, value in XL.unet_config.items() if name not in unlike}
    save_file(draw(ControlNetModel(**config), 14), folder / "control.safetensors")
    controller = controlnet.open(folder / "control.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), controller.net.state_dict, 10, controller)


def _control_lora_sdxl(folder: Path, _host: TinyHost) -> Opened:
    return _control_lora(folder, _sdxl_host(folder))


def _union(folder: Path, _host: TinyHost) -> Opened:
    host, unlike = _sdxl_host(folder), ("sample_size", "out_channels", "up_block_types")
    config = {name: value for name, value in XL.unet_config.items() if name not in unlike}
    net = ControlNetUnionModel(**config, num_trans_channel=32, num_proj_channel=32)
    save_file(draw(net, 17), folder / "union.safetensors")
    controller = controlnet_union.open(folder / "union.safetensors", host, MEMORY)
    a, b = (
        controller.prepare(replace(condition, task=task))
        for condition, task in zip(_conditions(), ("canny", "depth"), strict=True)
    )
    return Opened(
        host, (a, b), lambda: controller.net.state_dict() | controller.stem.state_dict(prefix="stem."), 10, controller
    )


def _xs_sdxl(folder: Path, _host: TinyHost) -> Opened:
    host = _sdxl_host(folder)
    net = new_xs(host.model.net, widths=(8, 16, 32), generator=torch.Generator().manual_seed(16))
    drawn = {name: tensor + 0.02 for name, tensor in net.state_dict().items()}
    save_file(xs_originals(drawn), folder / "xs.safetensors")
    controller = controlnet_xs.open(folder / "xs.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), controller.net.state_dict, 10, controller)


def _t2i_sdxl(folder: Path, _host: TinyHost) -> Opened:
    host = _sdxl_host(folder)
    save_file(draw(T2IAdapter(3, [32, 64, 128, 128], 2, 16, "full_adapter_xl"), 15), folder / "t2i.safetensors")
    controller = t2i_adapter.open(folder / "t2i.safetensors", host, MEMORY)
    a, b = (controller.prepare(condition) for condition in _conditions())
    return Opened(host, (a, b), controller.net.state_dict, 4, controller)


def _reference_sdxl(folder: Path, _host: TinyHost) -> Opened:
    return _reference(folder, _sdxl_host(folder))


MINIATURES: dict[str, Callable[[Path, TinyHost], Opened]] = {
    "controlnet": _controlnet,
    "control-lora": _control_lora,
    "ctrlora": _ctrlora,
    "ctrlora-xl": _ctrlora_xl,
    "uni-controlnet": _uni,
    "unicontrol": _unicontrol,
    "controlnet-xs": _xs,
    "t2i-adapter": _t2i,
    "controlnet-sd3": _sd3,
    "ip-adapter": _ip_adapter,
    "controlnet-lllite": _lllite,
    REFERENCE: _reference,
    COLOUR_FIX: _colour_fix,
    "controlnet of sdxl": _controlnet_sdxl,
    "control-lora of sdxl": _control_lora_sdxl,
    "controlnet-union": _union,
    "controlnet-xs of sdxl": _xs_sdxl,
    "t2i-adapter of sdxl": _t2i_sdxl,
    f"{REFERENCE} of sdxl": _reference_sdxl,
}


@pytest.fixture(scope="module")
def host() -> TinyHost:
    net = UNet2DConditionModel(**SIZES, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    return TinyHost(net.eval().requires_grad_(False))


@pytest.fixture(scope="module", params=list(MINIATURES))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, host: TinyHost) -> Opened:
    return MINIATURES[request.param](tmp_path_factory.mktemp(request.param), host)


def _call(host: TinyHost, num: int = 3, progress: float = 0.5, seed: int = 5) -> Call:
    g = torch.Generator().manual_seed(seed)
    rows = tuple(Row(i, i % 2 == 0, str(i), progress) for i in range(num))
    x, tokens = torch.randn(num, host.channels, 8, 8, generator=g), torch.randn(num, 7, host.text, generator=g)
    pooled = None if host.pooled is None else torch.randn(num, host.pooled, generator=g)
    return Call(x, torch.linspace(900, 20, num), tokens, rows, net=host.evaluate, pooled=pooled)


def _tensors(residuals: Residuals) -> tuple[Tensor, ...]:
    return (*residuals.down, residuals.mid)


def _effect(call: Call) -> tuple[Tensor, ...]:
    """Return what a control made of a call: its residuals, or where it acts by a net beside it, what comes out."""
    return (call.run(),) if call.residuals is None else _tensors(call.residuals)


def test_every_mechanism_has_a_miniature() -> None:
    own = {name for name in CONTROLS if CONTROLS.load(name).__name__.startswith("disegno.")}
    # what has no file is no kind of file
    assert own | {*FILELESS.values()} == {name.partition(" of ")[0] for name in MINIATURES}


@pytest.mark.parametrize("name", list(CONTROLS))
def test_a_mechanism_has_its_names(name: str) -> None:
    module = CONTROLS.load(name)
    assert module.families
    assert callable(module.recognises)
    assert callable(module.open)


@pytest.mark.parametrize("use", [Use(strength=0.0), Use(start=0.6), Use(end=0.5), Use(start=0.5, end=0.5)])
def test_without_strength_or_span_nothing_changes(use: Use, opened: Opened) -> None:
    """The same call comes back, so the picture keeps its bits; and every weight is as it was."""
    before = {name: tensor.clone() for name, tensor in opened.weights().items()}
    call = _call(opened.host)
    after = apply([Used(control, use) for control in opened.controls], call)
    assert after is call
    assert all(torch.equal(tensor, before[name]) for name, tensor in opened.weights().items())


def test_a_control_changes_the_picture_and_no_weight(opened: Opened) -> None:
    before = {name: tensor.clone() for name, tensor in opened.weights().items()}
    call = _call(opened.host)
    assert not torch.allclose(apply([Used(opened.controls[0], Use())], call).run(), call.run(), atol=1e-3)
    assert opened.weights().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in opened.weights().items())


def test_what_does_not_see_x_gives_the_same_for_any_x(opened: Opened) -> None:
    control, call = opened.controls[0], _call(opened.host)
    other = replace(call, x=torch.full_like(call.x, torch.nan))
    pairs = zip(_effect(control(call)), _effect(control(other)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) is not control.sees_x


def test_several_at_once_are_summed(opened: Opened) -> None:
    """Residuals are. Nets beside the model see each other's work: there, the order of the units changes nothing.

    Of corrections each sees the one before it.
    """
    call, (first, second) = _call(opened.host), opened.controls
    a, b = Used(first, Use(0.5)), Used(second, Use(1.5))
    both = apply([a, b], call)
    if both.corrections:
        assert not torch.allclose(both.run(), apply([a], call).run(), atol=1e-3)
        return
    if both.residuals is None:
        torch.testing.assert_close(both.run(), apply([b, a], call).run(), atol=1e-5, rtol=1e-4)
        assert all(not torch.allclose(both.run(), one(call).run(), atol=1e-3) for one in (a, b))
        return
    for found, x, y in zip(_effect(both), _effect(first(call)), _effect(second(call)), strict=True):
        torch.testing.assert_close(found, 0.5 * x + 1.5 * y)


def test_a_row_does_not_depend_on_its_batch(opened: Opened) -> None:
    """Alone or among others: the same within float32's rounding, which depends on how sums are blocked.

    Of the largest value, 3e-6 at most was seen (an AVX2 processor; residuals go up to 13).
    """
    call = _call(opened.host)
    together = _effect(opened.controls[0](call))
    for i in range(3):
        own = call.take(torch.tensor([i]))
        for a, b in zip(_effect(opened.controls[0](own)), together, strict=True):
            torch.testing.assert_close(a, b[i : i + 1], atol=5e-6 * float(b.abs().max()), rtol=0)


def test_a_mixed_batch_reaches_some_rows_and_leaves_the_others(opened: Opened) -> None:
    """Within float32's rounding, as a row alone is."""
    call = _call(opened.host)
    rows = tuple(replace(row, progress=progress) for row, progress in zip(call.rows, (0.1, 0.9, 0.1), strict=True))
    mixed = Used(opened.controls[0], Use(start=0.5))(replace(call, rows=rows))
    full = opened.controls[0](call)
    for a, b in zip(_effect(mixed), _effect(full), strict=True):
        torch.testing.assert_close(a[1], b[1], atol=max(1e-5, 5e-6 * float(b.abs().max())), rtol=1e-4)
        assert mixed.residuals is None or not a[[0, 2]].any()
    kept = mixed.run()[[0, 2]]
    torch.testing.assert_close(kept, call.run()[[0, 2]], atol=0.0, rtol=0.0)


def test_rows_with_different_controls_share_a_batch(opened: Opened) -> None:
    """The first control on the rows of the prompt, the second on all: each row as if it were drawn alone."""
    call = _call(opened.host)
    first = Use(mode="control", layers=(1.0,) * opened.layers)
    uses = [Used(opened.controls[0], first), Used(opened.controls[1], Use(0.5))]
    together = apply(uses, call).run()
    for i in range(3):
        one = call.take(torch.tensor([i]))
        torch.testing.assert_close(apply(uses, one).run(), together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_calls_of_several_owners_are_one_evaluation(opened: Opened) -> None:
    """Each is what it is alone, whichever control it has, and whichever rows that reaches."""
    first, second = (Used(control, Use(mode="control")) for control in opened.controls)
    whole = (_call(opened.host, seed=seed) for seed in (5, 6, 7))
    calls = [first(call) if i == 0 else second(call) if i == 2 else call for i, call in enumerate(whole)]
    alike = [call for call in calls if kind_of(call) == kind_of(calls[0])]
    assert len(alike) == (1 if calls[0].references else 2 if calls[0].image_prompts else 3)
    together = Sharing("always").run([[call] for call in alike])
    for call, found in zip(alike, together, strict=True):
        torch.testing.assert_close(found, call.run(), atol=1e-4, rtol=1e-4)


def test_regions_curves_and_layers(opened: Opened) -> None:
    call, control = _call(opened.host), opened.controls[0]
    plain, full = call.run(), control(call).run()

    def drawn(use: Use) -> Tensor:
        return Used(control, use)(call).run()

    white, black = torch.ones(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    torch.testing.assert_close(drawn(Use(curve=parse_curve("0.5@0,0.5@1"))), drawn(Use(0.5)), atol=1e-5, rtol=1e-4)
    if control(call).references:
        return  # everywhere, in a share of the layers: units that say otherwise are refused
    torch.testing.assert_close(drawn(Use(region=white)), full, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(drawn(Use(region=black)), plain, atol=1e-5, rtol=1e-4)
    half = torch.cat([white[..., :32], black[..., 32:]], dim=-1)
    assert all(not torch.allclose(drawn(Use(region=half)), other, atol=1e-3) for other in (plain, full))
    if control(call).corrections:
        return  # of the output: there are no layers, and units that name some are refused
    torch.testing.assert_close(drawn(Use(layers=(0.5,) * opened.layers)), drawn(Use(0.5)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(drawn(Use(mode="prompt")), full, atol=1e-3)
    with pytest.raises(RequestError, match=f"3 layer weights, but.* {opened.layers} "):
        drawn(Use(layers=(1.0,) * 3))


def test_how_many_layers_it_weighs_is_known_before_anything_is_drawn(opened: Opened) -> None:
    acting = opened.controls[0](_call(opened.host))
    if acting.references or acting.corrections:
        assert opened.controller is None  # a unit of one that has layers is refused
        return
    assert isinstance(opened.controller, Layered)
    layers = opened.controller.layers("")
    assert layers is not None
    layers.require((1.0,) * opened.layers)
    with pytest.raises(RequestError, match=f"3 layer weights, but.* {opened.layers} .*Give {opened.layers}, "):
        layers.require((1.0,) * 3)


def test_a_key_names_the_condition(opened: Opened) -> None:
    a, b = opened.controls
    assert a.key != b.key
    assert len(a.key) == 64


FILES = {
    "controlnet": "control",
    "control-lora": "control-lora",
    "ctrlora": "0",
    "uni-controlnet": "uni",
    "unicontrol": "unicontrol",
    "controlnet-xs": "xs",
    "t2i-adapter": "t2i",
    "controlnet-sd3": "sd3",
    "ip-adapter": "ip",
    "controlnet-lllite": "lllite",
}
SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda t: t.new_zeros(0),
    "deeper": lambda t: torch.cat([t, t[:, :1]], dim=1) if t.ndim > 1 else t[None],
}
LEGITIMATE = {  # what is another control then, which opens
    *(("control-lora", "lora_controlnet", spoilt) for spoilt in SPOILT),  # a mark: what is in it does not count
    ("controlnet-sd3", "pos_embed_input.proj.weight", "deeper"),  # one that inpaints
    ("ip-adapter", "image_proj.latents", "deeper"),  # one of more tokens
    ("ip-adapter", "image_proj.proj_in.weight", "deeper"),  # one that looks by another CLIP
}


def _parts(name: str, folder: Path, host: TinyHost) -> dict[str, object]:
    if name == "ctrlora":
        return {"base": ctrlora.open_base(folder / "base.safetensors", host, MEMORY)}
    return {"clip": folder / "image_encoder"} if name == "ip-adapter" else {}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("name", FILES)
def test_a_tensor_of_another_shape_is_said_in_words_and_named(
    name: str, spoilt: str, tmp_path: Path, host: TinyHost
) -> None:
    """One of each kind of tensor, spoilt alone: never an error of PyTorch's, in opening or later."""
    host, path = MINIATURES[name](tmp_path, host).host, tmp_path / f"{FILES[name]}.safetensors"
    with safe_open(path, "pt") as file:
        tensors, words = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    parts = _parts(name, tmp_path, host)
    kinds = {(key.split(".")[0], *key.split(".")[-2:]): key for key in reversed(tensors) if ".bias" not in key}
    for key in (key for key in kinds.values() if (name, key, spoilt) not in LEGITIMATE):
        save_file(tensors | {key: SPOILT[spoilt](tensors[key]).contiguous()}, path, words)
        with pytest.raises(ModelFileError) as refused:
            CONTROLS.load(name).open(path, host, MEMORY, **parts)
        assert re.search(r"\(.*\)|not fit|incomplete|no LoRA", str(refused.value)), (key, str(refused.value))
