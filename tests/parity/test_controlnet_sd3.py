"""ControlNets of Stable Diffusion 3 against diffusers' pipelines: one, several, for inpainting, without text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3MultiControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
)
from torch import Tensor

from disegno.backbones import miniature_sd3 as mini
from disegno.backbones import sd3
from disegno.backbones._mmdit import Mmdit
from disegno.backbones.miniature import draw, write_part
from disegno.controls import controlnet_sd3
from disegno.controls.base import Condition
from disegno.controls.strength import Use, Used
from disegno.core.errors import UnknownKind, WrongFamily
from disegno.core.request import Request
from disegno.diffusion.call import Call, Row
from disegno.diffusion.noise import ImageNoise
from disegno.engine.batch import Batch, View
from disegno.engine.runs import Material, runs_of
from disegno.engine.texts import Texts
from disegno.memory import FULL_PRECISION, Memory
from disegno.text.learnt import TextOptions
from disegno.weights.identify import identify
from disegno.weights.save import save_safetensors

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

MEMORY = Memory(FULL_PRECISION)
STEPS, SEED = 6, 3
REQUEST = Request(prompt="a red car", negative="blur", steps=STEPS, sampler="Euler", schedule="normal", cfg=4.0)
ATOL = 1e-4  # float32 through 6 guided steps
SHARED = {
    key: value for key, value in mini.SD3.net_config.items() if key not in ("num_layers", "dual_attention_layers")
}
KINDS: dict[str, dict[str, Any]] = {
    "instantx": SHARED | {"num_layers": 2},
    "pooled": SHARED | {"num_layers": 1, "force_zeros_for_pooled_projection": False},
    "no text": SHARED
    | {
        "num_layers": 2,
        "joint_attention_dim": None,
        "use_pos_embed": False,
        "qk_norm": None,
        "force_zeros_for_pooled_projection": False,
    },
}


def _tensors(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    net = SD3ControlNetModel(**config)
    fixed = {name: t for name, t in net.state_dict().items() if name.endswith("pos_embed.pos_embed")}
    return draw(net, seed) | fixed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "sd3", encoders=("clip_l", "clip_g"))


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    for seed, (name, config) in enumerate(KINDS.items()):
        own = {"_class_name": "SD3ControlNetModel"} | config
        write_part(folder / name, "diffusion_pytorch_model", (own, _tensors(config, seed)))
    return folder


def _image(seed: int) -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def _ours(backbone: Mmdit, controls: tuple[Any, ...]) -> Tensor:
    texts = Texts.plain(*(backbone.read_prompt(text, TextOptions()) for text in (REQUEST.prompt, REQUEST.negative)))
    (run,) = runs_of(REQUEST, backbone, Material(texts, (8, 8), (View(controls),)), [SEED], [SEED])
    batch = Batch(backbone)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


class ModeVae(AutoencoderKL):
    """diffusers' pipelines sample the posterior; this one's has no spread."""

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        encoded = super().encode(x, return_dict)
        posterior = encoded[0] if not return_dict else encoded.latent_dist
        posterior.std = torch.zeros_like(posterior.std)
        return encoded


@torch.no_grad()
@pytest.mark.parametrize("names", [("instantx",), ("pooled",), ("no text",), ("instantx", "instantx")], ids=" + ".join)
def test_the_same_latents_as_the_pipelines(model: Path, nets: Path, names: tuple[str, ...]) -> None:
    backbone = sd3.open(model, MEMORY)
    theirs = [SD3ControlNetModel.from_pretrained(nets / name) for name in names]
    pipeline = StableDiffusion3ControlNetPipeline(
        transformer=SD3Transformer2DModel.from_pretrained(model / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=mini.SHIFT),
        vae=ModeVae.from_pretrained(model / "vae"),
        controlnet=theirs[0] if len(theirs) == 1 else SD3MultiControlNetModel(theirs),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3")),
        **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3")),
    )
    pipeline.set_progress_bar_config(disable=True)
    states = [backbone.read_prompt(text, TextOptions()) for text in (REQUEST.prompt, REQUEST.negative)]
    images, weights = [_image(n) for n in range(len(names))], [0.8, 0.5][: len(names)]
    shown = [image * 2 - 1 for image in images]  # the pipeline takes tensors as the VAE is shown them
    expected = pipeline(
        prompt_embeds=states[0].tokens, pooled_prompt_embeds=states[0].pooled,
        negative_prompt_embeds=states[1].tokens, negative_pooled_prompt_embeds=states[1].pooled,
        control_image=shown if len(shown) > 1 else shown[0],
        controlnet_conditioning_scale=weights if len(weights) > 1 else weights[0],
        num_inference_steps=STEPS, guidance_scale=REQUEST.cfg, height=64, width=64,
        latents=ImageNoise((16, 8, 8), [SEED]).start_noise(), output_type="latent",
    ).images  # fmt: skip
    opened = [controlnet_sd3.open(nets / name, backbone, MEMORY) for name in names]
    prepared = [
        net.prepare(Condition(image, str(n))) for n, (net, image) in enumerate(zip(opened, images, strict=True))
    ]
    controls = tuple(Used(one, Use(strength)) for one, strength in zip(prepared, weights, strict=True))
    assert torch.allclose(_ours(backbone, controls), expected, atol=ATOL)
    assert not torch.allclose(_ours(backbone, ()), expected, atol=0.05)


@torch.no_grad()
def test_one_that_inpaints_is_shown_the_picture_without_the_hole_and_the_mask(model: Path, tmp_path: Path) -> None:
    config = SHARED | {"num_layers": 1, "extra_conditioning_channels": 1}
    save_safetensors(tmp_path / "inpaint.safetensors", _tensors(config, 5), {})
    backbone, image = sd3.open(model, MEMORY), _image(1)
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 16:40, 8:48] = 1
    control = controlnet_sd3.open(tmp_path / "inpaint.safetensors", backbone, MEMORY).prepare(
        Condition(image, "k", mask)
    )
    vae = AutoencoderKL.from_pretrained(model / "vae")
    holed = (image * 2 - 1).masked_fill(mask.bool().expand(-1, 3, -1, -1), -1)
    latents = (vae.encode(holed).latent_dist.mode() - 0.0609) * 1.5305
    expected = torch.cat([latents, 1 - mask[:, :, ::8, ::8]], dim=1)
    assert torch.allclose(control.latents, expected, atol=1e-5)


@torch.no_grad()
def test_a_file_alone_is_its_folder(model: Path, nets: Path, tmp_path: Path) -> None:
    backbone = sd3.open(model, MEMORY)
    states = backbone.read_prompt("a cat", TextOptions())
    row = (Row(0, positive=True, text="", progress=0.0),)
    call = Call(torch.randn(1, 16, 9, 8), torch.tensor([500.0]), states.tokens, row, backbone.evaluate, states.pooled)
    for name in ("instantx", "no text"):
        card = identify(nets / name)
        assert (card.kind, card.mechanism, card.family) == ("control", "controlnet", "sd3")
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes((nets / name / "diffusion_pytorch_model.safetensors").read_bytes())
        assert controlnet_sd3.recognises(identify(path))
        conditions = Condition(torch.rand(1, 3, 72, 64, generator=torch.Generator().manual_seed(0)), "k")
        one, many = (controlnet_sd3.open(p, backbone, MEMORY).prepare(conditions)(call) for p in (path, nets / name))
        assert one.residuals is not None and many.residuals is not None
        assert len(one.residuals.down) == mini.NUM_BLOCKS - 2 and one.residuals.mid.shape == (1, mini.WIDTH, 5, 4)
        assert torch.equal(one.residuals.mid, many.residuals.mid)
        assert one.run().shape == call.x.shape


def test_what_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    backbone = sd3.open(model, MEMORY)
    wide = SHARED | {"num_layers": 1, "num_attention_heads": 2}
    save_safetensors(tmp_path / "wide.safetensors", _tensors(wide, 0), {})
    with pytest.raises(WrongFamily, match="the width of the blocks is 128, the model's is 64"):
        controlnet_sd3.open(tmp_path / "wide.safetensors", backbone, MEMORY)
    save_safetensors(tmp_path / "none.safetensors", {"controlnet_blocks.0.weight": torch.zeros(2, 2)}, {})
    with pytest.raises(UnknownKind, match="no ControlNet of Stable Diffusion 3"):
        controlnet_sd3.open(tmp_path / "none.safetensors", backbone, MEMORY)
    assert json.loads((model / "model_index.json").read_text("utf-8"))["_class_name"] == "StableDiffusion3Pipeline"
