"""T2I-Adapter against diffusers' class and pipeline, and its files in every form."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionAdapterPipeline, T2IAdapter
from safetensors.torch import save_file
from torch import Tensor

from disegno.backbones.miniature import Miniature, draw, open_miniature
from disegno.controls import t2i_adapter
from disegno.controls.base import Condition
from disegno.controls.strength import Use, Used
from disegno.core.errors import KeyMismatch, WrongFamily
from disegno.core.request import Request
from disegno.diffusion.call import Call, Row
from disegno.engine.batch import Batch, View
from disegno.engine.runs import Material, runs_of
from disegno.engine.texts import Texts
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.weights.identify import identify
from disegno.weights.t2i_files import names_of

# diffusers turns tensors into arrays in a way that numpy 2 deprecates
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

MEMORY = Memory(FULL_PRECISION)
KINDS = [("full_adapter", 3), ("full_adapter", 1), ("light_adapter", 3)]


def _theirs(kind: str = "full_adapter", channels: int = 3) -> T2IAdapter:
    """diffusers' light adapter makes one level more than it is told, as wide as the last."""
    widths = [32, 64] if kind == "full_adapter" else [32]
    net = T2IAdapter(channels, widths, 2, downscale_factor=8, adapter_type=kind)
    net.load_state_dict(draw(net, 5))
    return net.eval().requires_grad_(False)


def _published(net: T2IAdapter, each: int = 2) -> dict[str, Tensor]:
    """Return the weights by the original's names: the full one counts its blocks through all levels."""
    out: dict[str, Tensor] = {}
    for key, tensor in net.state_dict().items():
        parts = key.removeprefix("adapter.").split(".")
        if parts[0] == "body" and parts[2] == "resnets":
            light = "out_conv" in "".join(net.state_dict())
            place = [parts[1], "body", parts[3]] if light else [str(int(parts[1]) * each + int(parts[3]))]
            parts = ["body", *place, *parts[4:]]
        elif parts[0] == "body" and "conv_in.weight" in "".join(net.state_dict()):
            parts = ["body", str(int(parts[1]) * each), *parts[2:]]
        out[".".join(parts)] = tensor.clone()
    return out


def _host(kind: str = "full_adapter") -> Any:
    widths = (32, 64) if kind == "full_adapter" else (32, 32)
    return open_miniature(made=Miniature(unet={"block_out_channels": widths}))


def _image(channels: int = 3, seed: int = 1) -> Tensor:
    """A picture; for an adapter of one channel a grey one."""
    image = torch.rand(1, channels, 64, 96, generator=torch.Generator().manual_seed(seed))
    return image if channels == 3 else image.expand(1, 3, 64, 96)


@pytest.mark.parametrize(("kind", "channels"), KINDS)
def test_features_of_every_form_of_file(kind: str, channels: int, tmp_path: Path) -> None:
    net, host = _theirs(kind, channels), _host(kind)
    net.save_pretrained(tmp_path / "folder")
    torch.save(_published(net), tmp_path / "published.pth")
    save_file({key: t.clone() for key, t in net.state_dict().items()}, tmp_path / "file.safetensors")
    wanted = net(_image(channels)[:, :channels])
    for name in ("folder", "published.pth", "file.safetensors"):
        card = identify(tmp_path / name)
        assert (card.kind, card.mechanism, card.family) == ("control", "t2i-adapter", "sd1"), name
        control = t2i_adapter.open(tmp_path / name, host, MEMORY).prepare(Condition(_image(channels), "a"))
        for found, feature in zip(control.features, wanted, strict=True):
            assert torch.equal(found, feature)
        assert control.places == (1, 3)


def test_the_net_under_it_is_diffusers(tmp_path: Path) -> None:
    net, host = _theirs(), _host()
    save_file(_published(net), tmp_path / "adapter.safetensors")
    control = t2i_adapter.open(tmp_path / "adapter.safetensors", host, MEMORY).prepare(Condition(_image(), "a"))
    g = torch.Generator().manual_seed(2)
    x, tokens = torch.randn(2, 4, 8, 12, generator=g), torch.randn(2, 7, 32, generator=g)
    rows = (Row(0, True, "a", 0.5), Row(0, False, "b", 0.5))
    call = Call(x, torch.tensor([900.0, 20.0]), tokens, rows, net=host.evaluate)

    def theirs(weights: tuple[float, float]) -> Tensor:
        features = [f.expand(2, *f.shape[1:]) * w for f, w in zip(net(_image()), weights, strict=True)]
        added = {"down_intrablock_additional_residuals": features}
        with torch.no_grad():
            return host.net(call.x, call.t, call.tokens, **added, return_dict=False)[0]

    for use, weights in (
        (Use(), (1.0, 1.0)),
        (Use(0.6), (0.6, 0.6)),
        (Use(2.0, mode="prompt"), (1.65, 2.0)),  # A1111: the last two of 0.25, 0.62, 0.825, 1
        (Use(layers=(0.0, 0.5)), (0.0, 0.5)),
    ):
        torch.testing.assert_close(Used(control, use)(call).run(), theirs(weights), atol=2e-6, rtol=0)
    one = Used(control, Use(mode="control"))(call).run()
    torch.testing.assert_close(one[:1], theirs((0.825, 1.0))[:1], atol=2e-6, rtol=0)
    torch.testing.assert_close(one[1:], call.run()[1:], atol=0, rtol=0)  # the negative prompt's row is left alone


def test_latents_of_guided_steps_are_the_pipelines(tmp_path: Path) -> None:
    net, host = _theirs(), _host()
    net.save_pretrained(tmp_path / "folder")
    scheduler: Any = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace", steps_offset=1
    )
    parts: Any = {"tokenizer": None, "text_encoder": None, "safety_checker": None, "feature_extractor": None}
    pipeline: Any = StableDiffusionAdapterPipeline(
        vae=host.vae, unet=host.net, adapter=net, scheduler=scheduler, requires_safety_checker=False, **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    states = [host.encode_text([text]) for text in ("a red car", "blur")]
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(7))
    wanted = pipeline(
        prompt_embeds=states[0].tokens, negative_prompt_embeds=states[1].tokens, image=_image(), latents=noise,
        num_inference_steps=10, guidance_scale=4.0, adapter_conditioning_scale=0.8, output_type="latent",
    ).images  # fmt: skip
    request = Request(steps=10, sampler="Euler", schedule="uniform", cfg=4.0, seed=7)
    control = t2i_adapter.open(tmp_path / "folder", host, MEMORY).prepare(Condition(_image(), "a"))
    material = Material(Texts.plain(*states), (8, 12), (View((Used(control, Use(0.8)),)),))
    (run,) = runs_of(request, host, material, [7], [7])
    batch = Batch(host)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    torch.testing.assert_close(run.latents, wanted, atol=2e-4, rtol=0)


def test_the_published_names_and_sizes() -> None:
    """TencentARC's for Stable Diffusion 1.4: 77 M parameters, grey for edges; the light one for colours."""
    full = build_empty(lambda: T2IAdapter(1, [320, 640, 1280, 1280], 2, 8, "full_adapter"))
    assert round(sum(p.numel() for p in full.parameters()) / 1e6) == 77
    layout = t2i_adapter.Layout((320, 640, 1280, 1280), (2, 5, 8, 11), (False, True, True, True))
    ours = build_empty(lambda: t2i_adapter.AdapterNet(1, layout, 2, is_light=False))
    published = _published(full)
    assert {"conv_in.weight", "body.0.block1.weight", "body.2.in_conv.weight", "body.7.block2.bias"} <= published.keys()
    shapes = {names_of(published, 4)[key]: tensor.shape for key, tensor in published.items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}
    light = build_empty(lambda: T2IAdapter(3, [320, 640, 1280], 4, 8, "light_adapter"))
    ours = build_empty(lambda: t2i_adapter.AdapterNet(3, layout, 4, is_light=True))
    published = _published(light, 4)
    assert {"body.0.in_conv.weight", "body.3.body.3.block2.weight", "body.3.out_conv.bias"} <= published.keys()
    shapes = {names_of(published, 4)[key]: tensor.shape for key, tensor in published.items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    net, host = _theirs(), _host()
    tensors = _published(net)
    save_file({key: t for key, t in tensors.items() if "conv_in" not in key}, tmp_path / "part.safetensors")
    save_file({key: t for key, t in tensors.items() if not key.startswith("body.3")}, tmp_path / "odd.safetensors")
    wide = {"conv_in.weight": torch.zeros(32, 768, 3, 3)}
    save_file(tensors | wide, tmp_path / "xl.safetensors")
    assert identify(tmp_path / "xl.safetensors").family == "sdxl"
    for name, error, words in (
        ("part", KeyMismatch, "incomplete T2I-Adapter"),
        ("odd", KeyMismatch, "3 blocks, which 2 features cannot share"),
        ("xl", WrongFamily, "looks at 768 numbers"),
    ):
        with pytest.raises(error, match=words):
            t2i_adapter.open(tmp_path / f"{name}.safetensors", host, MEMORY)
    save_file(tensors, tmp_path / "fine.safetensors")
    with pytest.raises(WrongFamily, match=r"features of the widths \(32, 64\)"):
        t2i_adapter.open(tmp_path / "fine.safetensors", _host("light_adapter"), MEMORY)
    config = json.dumps({"_class_name": "T2IAdapter", "downscale_factor": 16})
    (tmp_path / "xl").mkdir()
    (tmp_path / "xl" / "config.json").write_text(config)
    assert identify(tmp_path / "xl").family == "sdxl"
