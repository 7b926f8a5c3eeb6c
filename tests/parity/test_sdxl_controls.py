"""Controls of Stable Diffusion XL against diffusers' classes and pipelines, in miniature."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    ControlNetXSAdapter,
    EulerDiscreteScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
    UNetControlNetXSModel,
)
from safetensors.torch import save_file
from torch import Tensor

from disegno.backbones import miniature, sdxl
from disegno.backbones import miniature_sdxl as mini
from disegno.backbones.base import TextStates
from disegno.backbones.miniature_sdxl import THREE_LEVELS, Sdxl
from disegno.controls import controlnet, controlnet_union, controlnet_xs, t2i_adapter
from disegno.controls._xs_net import EPS, Heads, XsNet, groups_of
from disegno.controls._xs_new import Sizes, xs_shapes
from disegno.controls.base import Condition, Control
from disegno.controls.strength import Use, Used, joined
from disegno.core.errors import RequestError, WrongFamily
from disegno.core.request import Request
from disegno.diffusion.call import Call, Row
from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.told import Told, told_size
from disegno.engine.batch import Batch, View
from disegno.engine.runs import Material, runs_of
from disegno.engine.texts import Texts
from disegno.memory import FULL_PRECISION, Memory, Policy, build_empty
from disegno.text.learnt import TextOptions
from disegno.weights.identify import identify
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors
from disegno.weights.t2i_files import names_of, originals_of
from disegno.weights.union_files import TASKS
from disegno.weights.xs_files import names_of as xs_names
from disegno.weights.xs_files import originals_of as xs_originals
from kit import xl

# diffusers turns tensors into arrays in a way that numpy 2 deprecates
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

MEMORY = Memory(FULL_PRECISION)
MADE = Sdxl(unet=THREE_LEVELS)
PROMPT, NEGATIVE = "a red car on a city street", "blur"
REQUEST = Request(prompt=PROMPT, negative=NEGATIVE, steps=6, sampler="Euler", schedule="uniform", cfg=5.0)
SEED = 3
IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
REAL = {name: value for name, value in xl.BASE.items() if name != "sample_size"}
NONE = ("DownBlock2D",) * 3
# as diffusers/controlnet-*-sdxl-1.0, -mid and -small have them (the last's middle has an attention without a block)
SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "mid": {"down_block_types": (*NONE[:2], "CrossAttnDownBlock2D"), "transformer_layers_per_block": (1, 1, 1)},
    "small": {"down_block_types": NONE, "transformer_layers_per_block": (0, 0, 0)},
    "smallest": {"down_block_types": NONE, "mid_block_type": "UNetMidBlock2D"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "base", MADE)


@pytest.fixture(scope="module")
def host(folder: Path) -> sdxl.Sdxl:
    return sdxl.open(folder, MEMORY)


@pytest.fixture(scope="module")
def states(host: sdxl.Sdxl) -> tuple[TextStates, TextStates]:
    return host.read_prompt(PROMPT, TextOptions()), host.read_prompt(NEGATIVE, TextOptions())


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _call(host: sdxl.Sdxl, states: tuple[TextStates, TextStates]) -> Call:
    """A prompt's row and a negative prompt's, at two noise levels."""
    told = Told(crop_top=16, crop_left=24)
    rows = tuple(Row(i, positive=i == 0, text=str(i), progress=0.5, seed=40, told=told) for i in range(2))
    tokens = torch.cat([state.tokens for state in states])
    pooled = torch.cat([state.pooled for state in states if state.pooled is not None])
    return Call(_noise(2, 4, 8, 12), torch.tensor([7.0, 981.0]), tokens, rows, host.evaluate, pooled)


def _told(call: Call) -> dict[str, Tensor]:
    assert call.pooled is not None
    told = told_size(call.pooled, call.x, [row.told for row in call.rows])
    assert told["time_ids"].tolist() == [[64, 96, 16, 24, 64, 96]] * 2
    return told


def _drawn(host: sdxl.Sdxl, states: tuple[TextStates, TextStates], controls: tuple[Control, ...]) -> Tensor:
    material = Material(Texts.plain(*states), (8, 12), (View(controls),))
    (run,) = runs_of(REQUEST, host, material, [SEED], [SEED])
    batch = Batch(host)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace", steps_offset=1
    )


def _pipelines(cls: Any, host: sdxl.Sdxl, states: tuple[TextStates, TextStates], parts: Any, **call: Any) -> Tensor:
    """Return the latents that diffusers' pipeline draws for the same texts and noise."""
    none: Any = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = cls(vae=host.vae, unet=host.net, scheduler=_scheduler(), **none, **parts)
    pipeline.set_progress_bar_config(disable=True)
    texts: dict[str, Any] = {
        "prompt_embeds": states[0].tokens,
        "negative_prompt_embeds": states[1].tokens,
        "pooled_prompt_embeds": states[0].pooled,
        "negative_pooled_prompt_embeds": states[1].pooled,
    }
    noise = ImageNoise((4, 8, 12), [SEED]).start_noise()
    more = {"num_inference_steps": REQUEST.steps, "guidance_scale": REQUEST.cfg, "output_type": "latent"}
    with torch.no_grad():
        return pipeline(**texts, latents=noise, height=64, width=96, **more, **call).images


# ---- ControlNet


def _config(size: str) -> dict[str, Any]:
    unlike = ("sample_size", "out_channels", "up_block_types")
    return {name: value for name, value in MADE.unet_config.items() if name not in unlike} | SIZES[size]


def _control_tensors(size: str, seed: int = 5) -> dict[str, Tensor]:
    return miniature.draw(build_empty(lambda: ControlNetModel(**_config(size))), seed)


def _theirs(size: str, tensors: Mapping[str, Tensor]) -> ControlNetModel:
    net = ControlNetModel(**_config(size))
    net.load_state_dict(dict(tensors))
    return net.eval().requires_grad_(False)


def _written(path: Path, layout: str, size: str = "full", seed: int = 5) -> Path:
    tensors = _control_tensors(size, seed)
    if layout == "folder":
        config = {"_class_name": "ControlNetModel", **_config(size)}
        miniature.write_part(path, "diffusion_pytorch_model", (config, tensors))
        return path
    names = ldm.unet_originals(tensors) if layout == "original" else {name: name for name in tensors}
    save_safetensors(path, {names[name]: tensor for name, tensor in tensors.items()}, {})
    return path


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["file", "original", "folder"])
def test_a_controlnet_is_diffusers(host: sdxl.Sdxl, states: Any, tmp_path: Path, layout: str, size: str) -> None:
    path = _written(tmp_path / ("folder" if layout == "folder" else "c.safetensors"), layout, size)
    card = identify(path)
    assert (card.kind, card.mechanism, card.family) == ("control", "controlnet", "sdxl")
    control = controlnet.open(path, host, MEMORY).prepare(Condition(IMAGE, "k"))
    call = _call(host, states)
    ours = control(call).residuals
    theirs = _theirs(size, _control_tensors(size))
    down, mid = theirs(call.x, call.t, call.tokens, IMAGE, added_cond_kwargs=_told(call), return_dict=False)
    assert ours is not None and len(ours.down) == 9
    pairs = zip((*ours.down, ours.mid), (*down, mid), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    unet = host.net(
        call.x, call.t, call.tokens, added_cond_kwargs=_told(call), down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample  # fmt: skip
    assert torch.allclose(control(call).run(), unet, atol=1e-4)


@pytest.mark.parametrize("strengths", [(0.7,), (0.7, 1.2)], ids=["one", "two"])
def test_latents_under_controlnets_are_the_pipelines(
    host: sdxl.Sdxl, states: Any, tmp_path: Path, strengths: tuple[float, ...]
) -> None:
    sizes = ("full", "smallest")[: len(strengths)]
    paths = [_written(tmp_path / f"{size}.safetensors", "file", size, seed) for seed, size in enumerate(sizes)]
    controls = [controlnet.open(path, host, MEMORY).prepare(Condition(IMAGE, "k")) for path in paths]
    nets = [_theirs(size, _control_tensors(size, seed)) for seed, size in enumerate(sizes)]
    wanted = _pipelines(
        StableDiffusionXLControlNetPipeline, host, states, {"controlnet": nets}, image=[IMAGE] * len(nets),
        controlnet_conditioning_scale=list(strengths), control_guidance_end=[0.5] * len(nets),
    )  # fmt: skip
    used = tuple(Used(one, Use(strength, end=0.5)) for one, strength in zip(controls, strengths, strict=True))
    torch.testing.assert_close(_drawn(host, states, used), wanted, atol=2e-4, rtol=0)
    assert not torch.allclose(_drawn(host, states, ()), wanted, atol=1e-2)


@torch.no_grad()
def test_ten_weights_by_layer(host: sdxl.Sdxl, states: Any, tmp_path: Path) -> None:
    path = _written(tmp_path / "c.safetensors", "file", "mid")
    control, call = controlnet.open(path, host, MEMORY).prepare(Condition(IMAGE, "k")), _call(host, states)
    full = control(call).residuals
    weights = tuple(0.1 * k for k in range(10))
    found = Used(control, Use(layers=weights))(call).residuals
    assert full is not None and found is not None
    for a, b, weight in zip((*found.down, found.mid), (*full.down, full.mid), weights, strict=True):
        torch.testing.assert_close(a, weight * b)
    with pytest.raises(RequestError, match="13 layer weights, but adds 10 residuals to this model"):
        Used(control, Use(layers=(1.0,) * 13))(call)


def test_a_controlnet_of_other_levels_is_refused(tmp_path: Path) -> None:
    other = sdxl.open(mini.write_folder(tmp_path / "two"), MEMORY)
    with pytest.raises(WrongFamily, match="the widths of the levels"):
        controlnet.open(_written(tmp_path / "c.safetensors", "file", "small"), other, MEMORY)


# ---- T2I-Adapter


def _adapter(channels: int = 3) -> T2IAdapter:
    net = T2IAdapter(channels, [32, 64, 128, 128], 2, downscale_factor=16, adapter_type="full_adapter_xl")
    net.load_state_dict(miniature.draw(net, 7))
    return net.eval().requires_grad_(False)


def _adapter_file(net: T2IAdapter, path: Path) -> Path:
    """As A1111's collection has them (.safetensors), as the original counts the blocks (.pth), or a folder."""
    own = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    if path.suffix == ".pth":
        torch.save(originals_of({key.removeprefix("adapter."): tensor for key, tensor in own.items()}), path)
    elif path.suffix:
        save_file(own, path)
    else:
        net.save_pretrained(path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["t2i-adapter_diffusers_xl_canny.safetensors", "adapter_xl.pth", "folder"])
def test_an_adapters_features_are_diffusers_and_go_where_its_unet_adds_them(
    host: sdxl.Sdxl, states: Any, tmp_path: Path, name: str, channels: int
) -> None:
    net = _adapter(channels)
    path = _adapter_file(net, tmp_path / name)
    card = identify(path)
    assert (card.kind, card.mechanism, card.family) == ("control", "t2i-adapter", "sdxl")
    control = t2i_adapter.open(path, host, MEMORY).prepare(Condition(IMAGE, "k"))
    assert control.places == (3, 5, 8, 9)  # the last: the middle
    theirs = net(IMAGE[:, :channels])
    assert all(torch.equal(a, b) for a, b in zip(control.features, theirs, strict=True))
    call = _call(host, states)

    def wanted(*weights: float) -> Tensor:
        features = [f.repeat(2, 1, 1, 1) * weight for f, weight in zip(theirs, weights, strict=True)]
        return host.net(
            call.x, call.t, call.tokens, added_cond_kwargs=_told(call), down_intrablock_additional_residuals=features
        ).sample

    for use, weights in (
        (Use(), (1.0,) * 4),
        (Use(0.6), (0.6,) * 4),
        (Use(2.0, mode="prompt"), (0.5, 1.24, 1.65, 2.0)),  # A1111: 0.25, 0.62, 0.825, 1
        (Use(layers=(0.0, 0.5, 0.0, 1.5)), (0.0, 0.5, 0.0, 1.5)),
    ):
        torch.testing.assert_close(Used(control, use)(call).run(), wanted(*weights), atol=1e-5, rtol=0)
    assert not torch.allclose(wanted(1, 1, 1, 0), wanted(1, 1, 1, 1), atol=1e-3)


def test_latents_under_an_adapter_are_the_pipelines(host: sdxl.Sdxl, states: Any, tmp_path: Path) -> None:
    net = _adapter()
    control = t2i_adapter.open(_adapter_file(net, tmp_path / "a.safetensors"), host, MEMORY)
    wanted = _pipelines(
        StableDiffusionXLAdapterPipeline, host, states, {"adapter": net}, image=IMAGE, adapter_conditioning_scale=0.8
    )
    found = _drawn(host, states, (Used(control.prepare(Condition(IMAGE, "k")), Use(0.8)),))
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


@torch.no_grad()
def test_an_adapter_of_sdxl_takes_sides_of_any_cells(host: sdxl.Sdxl, states: Any, tmp_path: Path) -> None:
    """The model's halving rounds up, and so do the adapter's squares of 16 pixels."""
    control = t2i_adapter.open(_adapter_file(_adapter(), tmp_path / "a.safetensors"), host, MEMORY)
    image = IMAGE[..., :56, :88]
    call = _call(host, states)
    odd = replace(call, x=call.x[..., :7, :11])
    assert control.prepare(Condition(image, "k"))(odd).run().shape == odd.x.shape


def test_the_published_adapters_sizes() -> None:
    """79 M parameters, as published; blocks that are counted through, as in the original's files."""
    widths = [320, 640, 1280, 1280]
    real = build_empty(lambda: T2IAdapter(3, widths, 2, 16, "full_adapter_xl")).state_dict()
    assert round(sum(tensor.numel() for tensor in real.values()) / 1e6) == 79
    model: Any = SimpleNamespace(net=build_empty(lambda: UNet2DConditionModel(**REAL)))
    layout = t2i_adapter.layout_of(model)
    assert (layout.widths, layout.places, layout.pixels) == (tuple(widths), (3, 5, 8, 9), 16)
    ours = build_empty(lambda: t2i_adapter.AdapterNet(3, layout, 2, is_light=False)).state_dict()
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    assert shapes == {name.removeprefix("adapter."): tensor.shape for name, tensor in real.items()}
    flat = originals_of(ours)
    assert {"conv_in.weight", "body.2.in_conv.weight", "body.4.in_conv.bias", "body.7.block2.bias"} <= flat.keys()
    assert {names_of(flat, 4)[name]: tensor.shape for name, tensor in flat.items()} == shapes


def test_adapters_of_other_models_are_refused(host: sdxl.Sdxl, tmp_path: Path) -> None:
    net = T2IAdapter(3, [32, 64, 128], 2, downscale_factor=8)
    net.save_pretrained(tmp_path / "old")
    with pytest.raises(WrongFamily, match=r"looks at 192 numbers a place .* the model wants 768"):
        t2i_adapter.open(tmp_path / "old", host, MEMORY)


# ---- ControlNet-XS


def _xs(host: sdxl.Sdxl, learns: bool, mix: float = 1.0) -> ControlNetXSAdapter:
    net = ControlNetXSAdapter.from_unet(
        host.net, block_out_channels=[32, 32, 64], num_attention_heads=[1, 1, 1], learn_time_embedding=learns,
        time_embedding_mix=mix,
    )  # fmt: skip
    drawn = miniature.draw(net, 9)
    net.load_state_dict({name: t * (0.3 if "_to_" in name else 1) for name, t in drawn.items()})
    return net.eval().requires_grad_(False)


def _both(host: sdxl.Sdxl, adapter: ControlNetXSAdapter) -> UNetControlNetXSModel:
    """Return diffusers' model with what its class rebuilds put right: eps, and groups where channels are few."""
    both = UNetControlNetXSModel.from_unet(host.net, adapter)
    for module in both.modules():
        if type(module).__name__ == "ResnetBlock2D":
            for norm in (module.norm1, module.norm2):
                norm.eps, norm.num_groups = EPS, groups_of(norm.num_channels)
    return both.eval().requires_grad_(False)


def _xs_file(adapter: ControlNetXSAdapter, path: Path) -> Path:
    if path.suffix:
        own = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
        ours = {new: own[name] for name, new in xs_names(own).items()}
        save_file(xs_originals(ours) if path.stem == "original" else own, path)
    else:
        adapter.save_pretrained(path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("learns", [False, True], ids=["20m", "48m"])
@pytest.mark.parametrize("name", ["original.safetensors", "file.safetensors", "folder"])
def test_a_controlnet_xs_beside_it_is_diffusers(
    host: sdxl.Sdxl, states: Any, tmp_path: Path, name: str, learns: bool
) -> None:
    """One with an embedding of the time of its own gives it to the model's blocks, too: the original does so."""
    adapter = _xs(host, learns)
    path = _xs_file(adapter, tmp_path / name)
    card = identify(path)
    assert (card.kind, card.mechanism) == ("control", "controlnet-xs")
    control = controlnet_xs.open(path, host, MEMORY).prepare(Condition(IMAGE, "k"))
    call, both = _call(host, states), _both(host, adapter)
    for scale in (1.0, 0.6):
        found = Used(control, Use(scale))(call).run()
        given = {"controlnet_cond": IMAGE, "conditioning_scale": scale, "added_cond_kwargs": _told(call)}
        wanted = both(call.x, call.t, call.tokens, **given).sample
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, call.run(), atol=1e-2)
    reached = Used(control, Use(mode="control"))(call).run()
    torch.testing.assert_close(reached[1:], call.run()[1:], atol=1e-5, rtol=1e-4)  # its own embedding, its own picture


@torch.no_grad()
def test_a_share_of_its_own_embedding(host: sdxl.Sdxl, states: Any, tmp_path: Path) -> None:
    adapter = _xs(host, learns=True, mix=0.4)
    control = controlnet_xs.open(_xs_file(adapter, tmp_path / "folder"), host, MEMORY).prepare(Condition(IMAGE, "k"))
    call, both = _call(host, states), _both(host, adapter)
    wanted = both(call.x, call.t, call.tokens, controlnet_cond=IMAGE, added_cond_kwargs=_told(call)).sample
    torch.testing.assert_close(control(call).run(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("widths", "learns", "millions"),
    [((16, 32, 64), False, 20.2), ((32, 64, 128), True, 47.7)],
    ids=["20m", "48m"],
)
def test_the_published_sizes_of_controlnet_xs(widths: tuple[int, ...], learns: bool, millions: int) -> None:
    """The names tell the parameters: 20 and 48 millions, the latter with an embedding of pooled texts, which is unused.

    The 20's published file has 80.8 MB, of four bytes a number.
    """
    heads = [max(1, width // 64) for width in widths]
    unet = build_empty(lambda: UNet2DConditionModel(**REAL))
    adapter = build_empty(
        lambda: ControlNetXSAdapter.from_unet(
            unet, block_out_channels=list(widths), num_attention_heads=heads, learn_time_embedding=learns
        )
    ).state_dict()
    shapes = {new: tuple(adapter[name].shape) for name, new in xs_names(adapter).items()}
    net = build_empty(lambda: XsNet(shapes, Heads.of(unet.config, REAL["block_out_channels"])))
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == shapes
    unused = {"label_emb.0.0.weight": (1280, 2816), "label_emb.0.2.weight": (1280, 1280)} if learns else {}
    num = sum(p.numel() for p in net.parameters()) + sum(a * b for a, b in unused.values())
    assert num / 1e6 == pytest.approx(millions, abs=0.05)
    original = xs_originals(net.state_dict())
    assert set(xs_names([*original, *(f"control_model.{name}" for name in unused)]).values()) == shapes.keys()
    assert net.num_residuals == 10
    ours = {name: shape for name, shape in shapes.items() if not name.startswith("time_embedding.")}
    assert xs_shapes(Sizes.of(unet, widths)) == ours


# ---- ControlNet Union


def _union(num: int = 8) -> ControlNetUnionModel:
    own = {"num_control_type": num, "num_trans_channel": 32, "num_trans_head": 8, "num_proj_channel": 32}
    net = ControlNetUnionModel(**_config("full"), **own, conditioning_embedding_out_channels=(16, 32, 48, 64))
    net.load_state_dict(miniature.draw(net, 17))
    return net.eval().requires_grad_(False)


def _union_file(net: ControlNetUnionModel, path: Path) -> Path:
    if path.suffix:
        save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, path)
    else:
        net.save_pretrained(path)
    return path


OTHER = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("name", ["promax.safetensors", "folder"])
def test_a_union_is_diffusers(host: sdxl.Sdxl, states: Any, tmp_path: Path, name: str) -> None:
    net = _union()
    path = _union_file(net, tmp_path / name)
    card = identify(path)
    assert (card.kind, card.mechanism, card.family) == ("control", "controlnet-union", "sdxl")
    assert card.tasks == tuple(TASKS)
    controller = controlnet_union.open(path, host, MEMORY)
    call = _call(host, states)
    call = replace(call, x=call.x[:1].expand(2, -1, -1, -1), t=call.t[:1].expand(2))  # a guided step's two rows
    shown = {"canny": IMAGE, "openpose": OTHER}
    own = [Used(controller.prepare(Condition(image, task, task=task)), Use()) for task, image in shown.items()]
    for controls, kinds in (([own[0]], [3]), ([own[1]], [0]), (own, [3, 0])):
        told = torch.zeros(2, 8)
        told[:, kinds] = 1
        images = [{3: IMAGE, 0: OTHER}[kind].expand(2, -1, -1, -1) for kind in kinds]
        down, mid = net(
            call.x, call.t, call.tokens, images, told, kinds, added_cond_kwargs=_told(call), return_dict=False
        )
        (one,) = joined(controls)  # several of one file are one evaluation
        found = one(call).residuals
        assert found is not None
        for a, b in zip((*found.down, found.mid), (*down, mid), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_unions_row_is_what_it_is_alone(host: sdxl.Sdxl, states: Any, tmp_path: Path) -> None:
    """In diffusers' class rows that differ would see each other."""
    controller = controlnet_union.open(_union_file(_union(), tmp_path / "u.safetensors"), host, MEMORY)
    control, call = controller.prepare(Condition(IMAGE, "k", task="depth")), _call(host, states)
    both = control(call).residuals
    assert both is not None
    for i in range(2):
        alone = control(call.take(torch.tensor([i]))).residuals
        assert alone is not None
        torch.testing.assert_close(alone.mid, both.mid[i : i + 1], atol=1e-5, rtol=1e-4)


def test_latents_under_a_union_are_the_pipelines(host: sdxl.Sdxl, states: Any, tmp_path: Path) -> None:
    net = _union()
    controller = controlnet_union.open(_union_file(net, tmp_path / "u.safetensors"), host, MEMORY)
    wanted = _pipelines(
        StableDiffusionXLControlNetUnionPipeline, host, states, {"controlnet": net}, control_image=[IMAGE, OTHER],
        control_mode=[1, 6],
    )  # fmt: skip
    pairs = (("depth", IMAGE), ("tile", OTHER))
    used = [Used(controller.prepare(Condition(image, task, task=task)), Use()) for task, image in pairs]
    torch.testing.assert_close(_drawn(host, states, joined(used)), wanted, atol=2e-4, rtol=0)


def test_a_union_knows_its_kinds_and_blacks_out_a_hole(host: sdxl.Sdxl, tmp_path: Path) -> None:
    few = controlnet_union.open(_union_file(_union(6), tmp_path / "u.safetensors"), host, MEMORY)
    assert list(few.tasks) == [name for name, task in TASKS.items() if task.number < 6]
    assert identify(tmp_path / "u.safetensors").tasks == tuple(few.tasks)
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 48:] = 1
    masked = few.prepare(Condition(IMAGE, "a", mask, task="seg")).shown[5]
    assert torch.equal(masked, few.prepare(Condition(IMAGE * (1 - mask), "b", task="seg")).shown[5])
    again = [few.prepare(Condition(image, "c", task=task)) for image, task in ((IMAGE, "canny"), (OTHER, "lineart"))]
    assert again[0].join(again[1]) is None  # one kind twice: evaluated apart


def test_a_union_of_the_published_size_opens() -> None:
    """xinsir's promax, by its configuration: eight kinds, a hint block of 48 to 384 channels."""
    unlike = ("up_block_types",)
    config = {name: value for name, value in REAL.items() if name not in unlike}
    real = build_empty(lambda: ControlNetUnionModel(**config, num_control_type=8)).state_dict()
    assert tuple(real["task_embedding"].shape) == (8, 320)
    assert tuple(real["control_add_embedding.linear_1.weight"].shape) == (1280, 8 * 256)
    model: Any = SimpleNamespace(
        net=build_empty(lambda: UNet2DConditionModel(**REAL)), family="sdxl", name="xl", fingerprint="xl"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controlnet_union, "weights_of", lambda _: (dict(real), (SimpleNamespace(metadata={}),), "0" * 64))
        opened = controlnet_union.open(Path("promax"), model, Memory(Policy(torch.device("meta"), torch.float32)))
    whole = {**opened.net.state_dict(), **opened.stem.state_dict(prefix="controlnet_cond_embedding.")}
    assert {name: tensor.shape for name, tensor in whole.items()} == {name: t.shape for name, t in real.items()}
