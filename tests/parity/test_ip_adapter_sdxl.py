"""IP-Adapter on Stable Diffusion XL against diffusers' loader, on a miniature; and the published files' names.

No published file was at hand: their names and shapes, as diffusers' classes want them, are built on meta tensors.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from corpus import headers
from disegno import ControlUnit, Request, Settings, Studio
from disegno.backbones import miniature, sdxl
from disegno.backbones import miniature_sdxl as mini
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.controls import ip_adapter
from disegno.controls._ip_nets import IpNet
from disegno.controls.base import Condition
from disegno.controls.strength import Use, Used
from disegno.core.errors import ModelFileError, RequestError, UnknownKind, WrongFamily
from disegno.core.request import Refiner
from disegno.diffusion.call import Call, Row
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.text.clip_vision import find_clip_vision, vision_config
from disegno.weights.identify import identify
from disegno.weights.ip_adapter_files import Form, read_ip
from kit import ip_adapter as kit
from kit import xl
from kit.clip import SIDE, write_clip
from kit.drawing import result_of

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
CLOSE = {"atol": 2e-5, "rtol": 0}  # as in test_ip_adapter.py
TEXT = sum(mini.WIDTHS.values())


def _picture(seed: int) -> Image.Image:
    """Return a picture of the size that the CLIP is shown: nothing is resized."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def _condition(picture: Image.Image) -> Condition:
    return Condition(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255, "a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "xl")


@pytest.fixture(scope="module")
def host(folder: Path) -> sdxl.Sdxl:
    return sdxl.open(folder, MEMORY)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "image_encoder", layers=3)


def _call(host: sdxl.Sdxl) -> Call:
    """Return a guided call: a row of the negative prompt, then one of the prompt, as diffusers orders them."""
    generator = torch.Generator().manual_seed(3)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, TEXT, generator=generator)
    pooled = torch.randn(2, mini.WIDTHS["clip_g"], generator=generator)
    rows = (Row(0, False, "", 0.0), Row(0, True, "a", 0.0))
    return Call(x, torch.tensor([500.0, 500.0]), tokens, rows, host.evaluate, pooled)


def _opened(folder: Path, form: Form, host: sdxl.Sdxl, clip: Path) -> Any:
    path = kit.write(folder / f"{form}.safetensors", kit.tensors(form, host))
    return ip_adapter.open(path, host, MEMORY, clip=clip)


def _tokenizer() -> Any:
    made: Any = CLIPTokenizer
    return made(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])


def _pipeline(host: sdxl.Sdxl, folder: Path, clip: Path, adapter: dict[str, Tensor]) -> Any:
    """Return diffusers' pipeline with an adapter on a copy of the net."""
    unet = UNet2DConditionModel(**mini.SDXL.unet_config)
    unet.load_state_dict(host.net.state_dict())
    pipe: Any = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(clip).eval(),
    )
    pipe.load_ip_adapter([kit.nested(adapter)], [""], [""])
    return pipe


@torch.no_grad()
def _theirs(pipe: Any, call: Call, picture: Image.Image) -> Tensor:
    embeds = pipe.prepare_ip_adapter_image_embeds([picture], None, "cpu", 1, True)
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    added = {"image_embeds": embeds, "text_embeds": call.pooled, "time_ids": ids}
    return pipe.unet(call.x, call.t, call.tokens, added_cond_kwargs=added).sample


@torch.no_grad()
@pytest.mark.parametrize("form", ["plain", "plus"])
def test_it_says_what_diffusers_says(form: Form, host: sdxl.Sdxl, folder: Path, clip: Path, tmp_path: Path) -> None:
    call, picture = _call(host), _picture(1)
    control = _opened(tmp_path, form, host, clip).prepare(_condition(picture))
    pipe, before = _pipeline(host, folder, clip, kit.tensors(form, host)), call.run()
    for scale in (1.0, 0.35):
        pipe.set_ip_adapter_scale(scale)
        ours = Used(control, Use(scale))(call).run()
        torch.testing.assert_close(ours, _theirs(pipe, call, picture), **CLOSE)
        assert (ours - before).abs().amax() > 0.02
    assert torch.equal(call.run(), before), "nothing stays installed"


@torch.no_grad()
def test_a_weight_for_each_stack_of_attentions(host: sdxl.Sdxl, folder: Path, clip: Path, tmp_path: Path) -> None:
    """InstantStyle's: the encoder's two, the decoder's three, the middle's; each has two attentions here, ten there."""
    call, picture, weights = _call(host), _picture(1), (0.1, 0.9, 0.8, 0.0, 0.6, 0.5)
    control = _opened(tmp_path, "plain", host, clip).prepare(_condition(picture))
    pipe = _pipeline(host, folder, clip, kit.tensors("plain", host))
    pipe.set_ip_adapter_scale({"down": {"block_1": [0.1, 0.9]}, "up": {"block_0": [0.8, 0.0, 0.6]}, "mid": 0.5})
    theirs = _theirs(pipe, call, picture)
    torch.testing.assert_close(Used(control, Use(layers=weights))(call).run(), theirs, **CLOSE)
    each = tuple(weight for weight in weights for _ in range(2))
    assert torch.equal(Used(control, Use(layers=each))(call).run(), Used(control, Use(layers=weights))(call).run())
    with pytest.raises(RequestError, match=r"16 layer weights, but 12 cross-attentions.*Give 6"):
        Used(control, Use(layers=(1.0,) * 16))(call)


# ---- the published files

WIDTHS = (*(640,) * 4, *(1280,) * 20, *(1280,) * 30, *(640,) * 6, *(1280,) * 10)
PUBLISHED: dict[str, tuple[Form, int, int, str]] = {  # form, what of CLIP it reads, its tokens, who looks
    "ip-adapter_sdxl": ("plain", 1280, 4, "CLIP ViT-bigG/14"),
    "ip-adapter_sdxl_vit-h": ("plain", 1024, 4, "CLIP ViT-H/14"),
    "ip-adapter-plus_sdxl_vit-h": ("plus", 1280, 16, "CLIP ViT-H/14"),
    "ip-adapter-plus-face_sdxl_vit-h": ("plus", 1280, 16, "CLIP ViT-H/14"),
}


@pytest.fixture(scope="module")
def real() -> Any:
    with torch.device("meta"):
        return UNet2DConditionModel(**xl.BASE)


def _published(name: str) -> headers.Shapes:
    """Return a published file's names and shapes: the resampler of "plus" is 1280 wide here, 768 for SD 1.5."""
    form, seen, _, _ = PUBLISHED[name]
    if form == "plain":
        own: headers.Shapes = {"proj.weight": (4 * 2048, seen), "proj.bias": (4 * 2048,)}
        own |= {"norm.weight": (2048,), "norm.bias": (2048,)}
    else:
        own = {"latents": (1, 16, 1280), "proj_in.weight": (1280, seen), "proj_in.bias": (1280,)}
        own |= {"proj_out.weight": (2048, 1280), "proj_out.bias": (2048,)}
        own |= {"norm_out.weight": (2048,), "norm_out.bias": (2048,)}
        for i in range(4):
            norms = {f"{part}.{what}": (1280,) for part in ("0.norm1", "0.norm2", "1.0") for what in ("weight", "bias")}
            matrices = {"0.to_q": (1280, 1280), "0.to_kv": (2560, 1280), "0.to_out": (1280, 1280)}
            matrices |= {"1.1": (5120, 1280), "1.3": (1280, 5120)}
            own |= {f"layers.{i}.{part}": shape for part, shape in norms.items()}
            own |= {f"layers.{i}.{part}.weight": shape for part, shape in matrices.items()}
    pairs = {
        f"ip_adapter.{2 * i + 1}.to_{which}_ip.weight": (out, 2048) for i, out in enumerate(WIDTHS) for which in "kv"
    }
    return {f"image_proj.{name}": shape for name, shape in own.items()} | pairs


def test_the_attentions_are_in_the_order_of_the_files(real: Any) -> None:
    places = ip_adapter.places_of(SimpleNamespace(net=real))  # pyright: ignore[reportArgumentType]
    assert tuple(real.get_submodule(f"{place}.to_k").out_features for place in places.names) == WIDTHS
    theirs = [place.removesuffix(".processor") for place in real.attn_processors if "attn2" in place]
    assert list(places.names) == theirs, "the order in which diffusers counts them"
    stacks = dict.fromkeys(
        (name.partition(".transformer_blocks")[0], depth)
        for name, depth in zip(places.names, places.depths, strict=True)
    )
    assert len(places.names) == 70 and len(stacks) == 11 and places.num_residuals == 10
    # skip connections: conv_in, 2, down; 2, down; 2 of the encoder
    assert [depth for _, depth in stacks] == [4, 5, 7, 8, 8, 7, 6, 5, 4, 3, 9]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_what_is_built_for_it(name: str, real: Any, tmp_path: Path) -> None:
    shapes, (form, seen, num_tokens, _) = _published(name), PUBLISHED[name]
    path = headers.write_header(tmp_path / f"{name}.safetensors", shapes)
    card = identify(path)
    assert (card.kind, card.mechanism, card.family) == ("control", "ip-adapter", "sdxl")
    file = read_ip(path)
    assert (file.form, file.seen, len(file.pairs)) == (form, seen, 70)
    net = build_empty(lambda: IpNet(form, shapes, file.pairs))
    assert {key: tuple(t.shape) for key, t in net.state_dict().items()} == shapes
    with torch.device("meta"):
        shown = torch.empty(1, seen) if form == "plain" else torch.empty(1, 257, seen)
        assert net.to("meta").image_proj(shown).shape == (1, num_tokens, 2048)
    theirs: dict[Form, nn.Module] = {
        "plain": build_empty(lambda: ImageProjection(seen, 2048, 4)),
        "plus": build_empty(lambda: IPAdapterPlusImageProjection(1280, 2048, 1280, heads=20, num_queries=16)),
    }
    own = sum(int(np.prod(shape)) for key, shape in shapes.items() if key.startswith("image_proj."))
    assert own == sum(p.numel() for p in theirs[form].parameters())


def _tower(width: int, inner: int, layers: int, projection: int) -> headers.Shapes:
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=16,
        patch_size=14, projection_dim=projection, hidden_act="gelu",
    )  # fmt: skip
    tower = build_empty(lambda: CLIPVisionModelWithProjection(config)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tower.items()}


TOWERS = {"CLIP ViT-H/14": (1280, 5120, 32, 1024), "CLIP ViT-bigG/14": (1664, 8192, 48, 1280)}


def _missing(eye: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        eye.found()
    return str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_finds_the_clip_that_it_was_made_for(name: str, tmp_path: Path) -> None:
    """ViT-H and bigG lie side by side, as in h94/IP-Adapter: what is read there tells which."""
    form, seen, _, known = PUBLISHED[name]
    eye = ip_adapter.Eye(name, form != "plain", seen, (tmp_path / "clip_vision",), lambda path: pytest.fail(str(path)))
    where = {"CLIP ViT-H/14": "models/image_encoder", "CLIP ViT-bigG/14": "sdxl_models/image_encoder"}[known]
    assert known in _missing(eye) and f"h94/IP-Adapter's {where}," in _missing(eye)
    (tmp_path / "clip_vision").mkdir()
    for number, sizes in enumerate(TOWERS.values()):
        headers.write_header(tmp_path / "clip_vision" / f"{number}.safetensors", _tower(*sizes))
    found = find_clip_vision(eye.places, eye.fits)
    config = None if found is None else vision_config(found)
    assert config is not None
    told = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.projection_dim)
    assert told == TOWERS[known]
    assert (config.num_attention_heads, config.patch_size, config.image_size, config.hidden_act) == (
        16,
        14,
        224,
        "gelu",
    )


def test_the_folder_of_the_published_files_is_searched(host: sdxl.Sdxl, clip: Path, tmp_path: Path) -> None:
    """An adapter in h94/IP-Adapter's sdxl_models, or elsewhere with that beside it."""
    there = kit.write(tmp_path / "sdxl_models" / "a.safetensors", kit.tensors("plain", host))
    apart = kit.write(tmp_path / "b.safetensors", kit.tensors("plain", host))
    for place in ("models", "sdxl_models"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "image_encoder").symlink_to(clip, target_is_directory=True)
        for path in (there, apart):
            eye = ip_adapter.open(path, host, MEMORY).eye
            found = find_clip_vision(eye.places, eye.fits)
            assert found is not None and found.name == "image_encoder"
        (tmp_path / place / "image_encoder").unlink()


def test_what_does_not_fit_is_refused_in_words(host: sdxl.Sdxl, clip: Path, tmp_path: Path) -> None:
    path = kit.write(tmp_path / "x.safetensors", kit.tensors("plain", host))
    old = miniature.open_miniature(MEMORY)
    with pytest.raises(WrongFamily, match=r"made for 12 cross-attentions, text of 96.*has 7 cross-attentions"):
        ip_adapter.open(path, old, MEMORY, clip=clip)
    refiner = sdxl.open(mini.write_folder(tmp_path / "refiner", Sdxl(refines=True)), MEMORY)
    with pytest.raises(WrongFamily, match=r"does not fit the open model refiner"):
        ip_adapter.open(path, refiner, MEMORY, clip=clip)
    face = {"proj.0.weight": (1024, 512), "proj.2.weight": (8192, 1024), "norm.weight": (2048,)}
    shapes = {f"image_proj.{key}": shape for key, shape in face.items()} | {"ip_adapter.1.to_k_ip.weight": (640, 2048)}
    path = headers.write_header(tmp_path / "face.safetensors", shapes)
    assert (identify(path).mechanism, identify(path).family) == ("ip-adapter-faceid", "sdxl")
    with pytest.raises(UnknownKind, match=r"FaceID.*or of SDXL ip-adapter-plus-face_sdxl_vit-h"):
        read_ip(path)


# ---- through the engine


def test_it_draws(host: sdxl.Sdxl, folder: Path, clip: Path, tmp_path: Path) -> None:
    kit.write(tmp_path / "plus.bin", kit.tensors("plus", host))
    (tmp_path / "image_encoder").symlink_to(clip, target_is_directory=True)
    for seed in (1, 2):
        _picture(seed).save(tmp_path / f"{seed}.png")
    studio = Studio(
        Settings(model_dirs=(folder.parent, tmp_path), cache_dir=tmp_path / "c", dtype="fp32", device="cpu")
    )
    request = Request(prompt="a disc", negative="x", model="xl", seed=1, steps=2, width=64, height=64)

    def drawn(**fields: Any) -> bytes:
        unit = ControlUnit(name="plus", image=str(tmp_path / "1.png"), annotate="none")
        result = result_of(replace(request, controls=(replace(unit, **fields),)), studio)
        assert result.warnings == ()
        return result.images[0].tobytes()

    plain = result_of(request, studio).images[0].tobytes()
    asked: list[dict[str, Any]] = [
        {},
        {"image": str(tmp_path / "2.png")},
        {"strength": 0.4},
        {"layers": (1.0,) * 4 + (0.0, 0.0)},
    ]
    assert len({plain, *(drawn(**fields) for fields in asked)}) == len(asked) + 1
    assert drawn(strength=0.0) == plain == result_of(request, studio).images[0].tobytes()


def test_it_acts_until_the_refiner_takes_over_and_says_so(host: sdxl.Sdxl, clip: Path, tmp_path: Path) -> None:
    """A1111 parity: a control's hooks are in the first model's net."""
    mini.write_file(tmp_path / "xl.safetensors")
    mini.write_file(tmp_path / "refiner.safetensors", Sdxl(seed=4, refines=True))
    kit.write(tmp_path / "plain.safetensors", kit.tensors("plain", host))
    (tmp_path / "image_encoder").symlink_to(clip, target_is_directory=True)
    _picture(1).save(tmp_path / "1.png")
    studio = Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path / "c", dtype="fp32", device="cpu"))
    small = Request(prompt="a disc", model="xl", seed=1, steps=3, width=64, height=64)
    request = replace(small, refiner=Refiner(model="refiner", at=0.4, share="steps"))
    unit = ControlUnit(name="plain", image=str(tmp_path / "1.png"), annotate="none")
    plain, seen = (result_of(replace(request, controls=units), studio) for units in ((), (unit,)))
    said = "The control plain acts until refiner.safetensors takes over, whose net has other sizes than that of"
    assert plain.warnings == () and seen.warnings == (f"{said} xl.safetensors.",)
    assert seen.images[0].tobytes() != plain.images[0].tobytes()
    assert seen.request.controls and seen.labels["ControlNet 0"]
