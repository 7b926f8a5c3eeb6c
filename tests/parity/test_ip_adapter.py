"""IP-Adapter against diffusers: its loader, its projections and its attention processor, on a miniature; and its files.

No published file was at hand: their names and shapes, as diffusers' classes want them, are built on meta tensors.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterFullImageProjection, IPAdapterPlusImageProjection
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from corpus import headers
from disegno.backbones.miniature import SD1, Miniature, open_miniature, sd15_unet
from disegno.controls import controlnet_xs, ip_adapter
from disegno.controls._ip_nets import IpNet
from disegno.controls._xs_new import new_xs
from disegno.controls.base import Condition
from disegno.controls.strength import Use, Used, apply
from disegno.core.errors import KeyMismatch, ModelFileError, RequestError, UnknownKind, WrongFamily
from disegno.diffusion.call import Call, Row
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.text.clip_vision import ClipVision, find_clip_vision, open_clip_vision, vision_config
from disegno.weights.identify import identify
from disegno.weights.ip_adapter_files import Form, read_ip
from disegno.weights.save import save_safetensors
from disegno.weights.xs_files import originals_of as xs_originals
from kit import ip_adapter as kit
from kit.clip import SIDE, write_clip

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
CLOSE = {"atol": 2e-5, "rtol": 0}  # outputs reach 3; float32, the same sums in another order


def _picture(seed: int) -> Image.Image:
    """Return a picture of the size that the CLIP is shown: nothing is resized."""
    drawn = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def _condition(picture: Image.Image, key: str = "a") -> Condition:
    return Condition(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255, key)


def _call(backbone: Any, size: tuple[int, int] = (8, 8)) -> Call:
    """Return a guided call: a row of the negative prompt, then one of the prompt, as diffusers orders them."""
    generator = torch.Generator().manual_seed(3)
    x, tokens = torch.randn(2, 4, *size, generator=generator), torch.randn(2, 7, 32, generator=generator)
    rows = (Row(0, False, "", 0.0), Row(0, True, "a", 0.0))
    return Call(x, torch.tensor([500.0, 500.0]), tokens, rows, net=backbone.evaluate)


@pytest.fixture(scope="module")
def host() -> Any:
    return open_miniature(MEMORY)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "image_encoder", layers=3)


def _opened(folder: Path, form: Form, host: Any, clip: Path, seed: int = 0) -> Any:
    path = kit.write(folder / f"{form}{seed}.safetensors", kit.tensors(form, host, seed))
    return ip_adapter.open(path, host, MEMORY, clip=clip)


def _pipeline(host: Any, clip: Path, adapters: Sequence[dict[str, Tensor]]) -> Any:
    """Return diffusers' pipeline with these adapters on a copy of the net."""
    unet = UNet2DConditionModel(**SD1.unet_config)
    unet.load_state_dict(host.net.state_dict())
    pipe = StableDiffusionPipeline(
        vae=host.vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(clip).eval(),
        requires_safety_checker=False,
    )
    pipe.load_ip_adapter([kit.nested(a) for a in adapters], [""] * len(adapters), [""] * len(adapters))
    return pipe


@torch.no_grad()
def _theirs(pipe: Any, call: Call, pictures: Sequence[Image.Image], scale: Any, masks: Any = None) -> Tensor:
    pipe.set_ip_adapter_scale(scale)
    embeds = pipe.prepare_ip_adapter_image_embeds(list(pictures), None, "cpu", 1, True)
    told = None if masks is None else {"ip_adapter_masks": masks}
    added = {"image_embeds": embeds}
    return pipe.unet(call.x, call.t, call.tokens, added_cond_kwargs=added, cross_attention_kwargs=told).sample


@torch.no_grad()
@pytest.mark.parametrize("form", kit.FORMS)
def test_every_form_says_what_diffusers_says(form: Form, host: Any, clip: Path, tmp_path: Path) -> None:
    call, picture = _call(host), _picture(1)
    control = _opened(tmp_path, form, host, clip).prepare(_condition(picture))
    pipe = _pipeline(host, clip, [kit.tensors(form, host)])
    before = call.run()
    for scale in (1.0, 0.35):
        ours = Used(control, Use(scale))(call).run()
        torch.testing.assert_close(ours, _theirs(pipe, call, [picture], scale), **CLOSE)
        assert (ours - before).abs().amax() > 0.02
    assert torch.equal(call.run(), before), "nothing stays installed"


@torch.no_grad()
def test_two_adapters_within_masks(host: Any, clip: Path, tmp_path: Path) -> None:
    """Masks whose edges lie on the deepest level's cells: there diffusers' samples and our means are the same."""
    call, pictures = _call(host, (8, 12)), [_picture(1), _picture(2)]
    pipe = _pipeline(host, clip, [kit.tensors("plain", host, 0), kit.tensors("plus", host, 1)])
    left = torch.zeros(1, 1, 64, 96)
    left[..., :48] = 1
    adapters = [_opened(tmp_path, "plain", host, clip, 0), _opened(tmp_path, "plus", host, clip, 1)]
    controls = [a.prepare(_condition(p)) for a, p in zip(adapters, pictures, strict=True)]
    uses = [Use(0.7, region=left), Use(0.4, region=1 - left)]
    ours = apply([Used(c, use) for c, use in zip(controls, uses, strict=True)], call).run()
    torch.testing.assert_close(ours, _theirs(pipe, call, pictures, [0.7, 0.4], [left, 1 - left]), **CLOSE)
    plain = apply([Used(c, replace(use, region=None)) for c, use in zip(controls, uses, strict=True)], call).run()
    torch.testing.assert_close(plain, _theirs(pipe, call, pictures, [0.7, 0.4]), **CLOSE)


@torch.no_grad()
def test_a_weight_for_each_attention(host: Any, clip: Path, tmp_path: Path) -> None:
    """In the order of the file: the encoder's, the decoder's, the middle's last."""
    call, picture, weights = _call(host), _picture(1), (0.1, 0.2, 0.9, 0.8, 0.7, 0.0, 0.5)
    control = _opened(tmp_path, "plain", host, clip).prepare(_condition(picture))
    pipe = _pipeline(host, clip, [kit.tensors("plain", host)])
    pipe.set_ip_adapter_scale(1.0)
    attentions = [p for name, p in pipe.unet.attn_processors.items() if "attn2" in name]
    assert len(attentions) == len(weights)
    for attention, weight in zip(attentions, weights, strict=True):
        attention.scale = [weight]
    embeds = pipe.prepare_ip_adapter_image_embeds([picture], None, "cpu", 1, True)
    theirs = pipe.unet(call.x, call.t, call.tokens, added_cond_kwargs={"image_embeds": embeds}).sample
    torch.testing.assert_close(Used(control, Use(layers=weights))(call).run(), theirs, **CLOSE)
    with pytest.raises(RequestError, match="13 layer weights, but 7 cross-attentions"):
        Used(control, Use(layers=(1.0,) * 13))(call)


def test_an_attention_counts_as_the_residual_of_its_depth() -> None:
    """Of Stable Diffusion 1.5: the 16 cross-attentions among the 13 residuals."""
    places = ip_adapter.places_of(SimpleNamespace(net=sd15_unet()))  # pyright: ignore[reportArgumentType]
    assert places.num_residuals == 13
    assert places.depths == (1, 2, 4, 5, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 12)


@torch.no_grad()
def test_rows_differ_in_picture_adapter_and_strength(host: Any, clip: Path, tmp_path: Path) -> None:
    """What a row reads does not depend on what the others read: the same bits, in a batch of the same size."""
    plain, plus = _opened(tmp_path, "plain", host, clip), _opened(tmp_path, "plus", host, clip, 1)
    one = Used(plain.prepare(_condition(_picture(1))), Use(0.5))(_call(host)).image_prompts[1]
    two = Used(plus.prepare(_condition(_picture(2))), Use(1.5))(_call(host)).image_prompts[1]
    call = replace(_call(host), image_prompts=(one, (*two, *one)))
    together = call.run()
    assert torch.equal(together[0], replace(call, image_prompts=(one, ())).run()[0])
    assert torch.equal(together[1], replace(call, image_prompts=((), (*two, *one))).run()[1])
    assert torch.equal(replace(call, image_prompts=(one, ())).run()[1], replace(call, image_prompts=()).run()[1])


@torch.no_grad()
def test_with_a_net_beside_the_models(host: Any, clip: Path, tmp_path: Path) -> None:
    """In ControlNet-XS's lock step the attentions read the picture, too; without what the net adds it is the same."""
    control = _opened(tmp_path, "plain", host, clip).prepare(_condition(_picture(1)))
    net = new_xs(host.net, widths=(8, 16), generator=torch.Generator().manual_seed(1))
    save_safetensors(tmp_path / "xs.safetensors", xs_originals(net.state_dict()), {})
    xs = controlnet_xs.open(tmp_path / "xs.safetensors", host, MEMORY).prepare(
        Condition(torch.zeros(1, 3, 64, 64), "x")
    )
    call = Used(control, Use())(_call(host))
    beside = xs(call)  # new: its zero convolutions add nothing
    assert beside.streams and torch.equal(beside.run(), call.run())


@torch.no_grad()
def test_pictures_of_one_file_are_mixed(host: Any, clip: Path, tmp_path: Path) -> None:
    """A1111 parity: the mean of their tokens."""
    adapter, other = _opened(tmp_path, "plus", host, clip), _opened(tmp_path, "plain", host, clip, 1)
    a, b = (adapter.prepare(_condition(_picture(i), str(i))) for i in (1, 2))
    both = a.mixed([b], [1.0, 3.0])
    name = next(iter(both.positive.read))
    tokens = [
        adapter.net.image_proj(adapter.vision.penultimate(adapter.vision.shown(_condition(_picture(i)).image)))
        for i in (1, 2)
    ]
    expected = adapter.net.ip_adapter["1"](0.25 * tokens[0] + 0.75 * tokens[1])
    torch.testing.assert_close(both.positive.read[name][0], expected[0][0], atol=1e-5, rtol=0)
    assert both.key not in (a.key, b.key)
    assert a.mixed([other.prepare(_condition(_picture(1)))], [1.0, 1.0]) is None


# ---- files

WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280)
PUBLISHED: dict[str, tuple[Form, int, int]] = {  # form, what of CLIP it reads (ViT-H, but for vit-G), its tokens
    "ip-adapter_sd15": ("plain", 1024, 4),
    "ip-adapter_sd15_light": ("plain", 1024, 4),
    "ip-adapter_sd15_vit-G": ("plain", 1280, 4),
    "ip-adapter-plus_sd15": ("plus", 1280, 16),
    "ip-adapter-plus-face_sd15": ("plus", 1280, 16),
    "ip-adapter-full-face_sd15": ("full", 1280, 257),
}


def _published(name: str, width: int = 768) -> headers.Shapes:
    """Return a published file's names and shapes."""
    form, seen, _ = PUBLISHED[name]
    if form == "plain":
        own: headers.Shapes = {"proj.weight": (4 * width, seen), "proj.bias": (4 * width,)}
        own |= {"norm.weight": (width,), "norm.bias": (width,)}
    elif form == "full":
        own = {"proj.0.weight": (seen, seen), "proj.0.bias": (seen,), "proj.2.weight": (width, seen)}
        own |= {"proj.2.bias": (width,), "proj.3.weight": (width,), "proj.3.bias": (width,)}
    else:
        own = {"latents": (1, 16, 768), "proj_in.weight": (768, seen), "proj_in.bias": (768,)}
        own |= {"proj_out.weight": (width, 768), "proj_out.bias": (width,)}
        own |= {"norm_out.weight": (width,), "norm_out.bias": (width,)}
        for i in range(4):
            norms = {f"{part}.{what}": (768,) for part in ("0.norm1", "0.norm2", "1.0") for what in ("weight", "bias")}
            matrices = {"0.to_q": (768, 768), "0.to_kv": (1536, 768), "0.to_out": (768, 768)}
            matrices |= {"1.1": (3072, 768), "1.3": (768, 3072)}
            own |= {f"layers.{i}.{part}": shape for part, shape in norms.items()}
            own |= {f"layers.{i}.{part}.weight": shape for part, shape in matrices.items()}
    pairs = {
        f"ip_adapter.{2 * i + 1}.to_{which}_ip.weight": (out, width) for i, out in enumerate(WIDTHS) for which in "kv"
    }
    return {f"image_proj.{name}": shape for name, shape in own.items()} | pairs


def test_the_attentions_are_in_the_order_of_the_files() -> None:
    unet = sd15_unet()
    names = ip_adapter.places_of(SimpleNamespace(net=unet)).names  # pyright: ignore[reportArgumentType]
    assert tuple(unet.get_submodule(f"{place}.to_k").out_features for place in names) == WIDTHS
    theirs = [place.removesuffix(".processor") for place in unet.attn_processors if "attn2" in place]
    assert list(names) == theirs, "the order in which diffusers counts them"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_what_is_built_for_it(name: str, tmp_path: Path) -> None:
    shapes, (form, seen, num_tokens) = _published(name), PUBLISHED[name]
    path = headers.write_header(tmp_path / f"{name}.safetensors", shapes)
    card = identify(path)
    assert (card.kind, card.mechanism, card.family) == ("control", "ip-adapter", "sd1")
    file = read_ip(path)
    assert (file.form, file.seen, len(file.pairs)) == (form, seen, 16)
    net = build_empty(lambda: IpNet(form, shapes, file.pairs))
    assert {key: tuple(t.shape) for key, t in net.state_dict().items()} == shapes
    with torch.device("meta"):
        shown = torch.empty(1, seen) if form == "plain" else torch.empty(1, 257, seen)
        assert net.to("meta").image_proj(shown).shape == (1, num_tokens, 768)


@pytest.mark.parametrize("form", kit.FORMS)
def test_the_projections_are_diffusers(form: Form) -> None:
    """The same numbers of parameters as diffusers' classes, of the published sizes."""
    theirs: dict[Form, nn.Module] = {
        "plain": build_empty(lambda: ImageProjection(1024, 768, 4)),
        "full": build_empty(lambda: IPAdapterFullImageProjection(1280, 768)),
        "plus": build_empty(lambda: IPAdapterPlusImageProjection(1280, 768, 768, heads=12, num_queries=16)),
    }
    name = next(name for name, (own, _, _) in PUBLISHED.items() if own == form)
    own = sum(int(np.prod(shape)) for key, shape in _published(name).items() if key.startswith("image_proj."))
    assert own == sum(p.numel() for p in theirs[form].parameters())


@torch.no_grad()
def test_a_bin_is_the_same_as_a_safetensors(host: Any, clip: Path, tmp_path: Path) -> None:
    tensors = kit.tensors("plus", host)
    controls = [
        ip_adapter.open(kit.write(tmp_path / name, tensors), host, MEMORY, clip=clip).prepare(_condition(_picture(1)))
        for name in ("a.safetensors", "a.bin")
    ]
    a, b = (control(_call(host)).run() for control in controls)
    assert torch.equal(a, b)


def test_what_does_not_fit_is_refused_in_words(host: Any, clip: Path, tmp_path: Path) -> None:
    def opens(tensors: dict[str, Tensor]) -> Any:
        return ip_adapter.open(kit.write(tmp_path / "x.safetensors", tensors), host, MEMORY, clip=clip)

    plain = kit.tensors("plain", host)
    face = plain | {"ip_adapter.1.to_q_lora.down.weight": torch.zeros(1, 1)}
    with pytest.raises(UnknownKind, match=r"FaceID.*InsightFace.*Choose"):
        opens(face)
    with pytest.raises(KeyMismatch, match="incomplete IP-Adapter"):
        opens({name: t for name, t in plain.items() if "image_proj" not in name} | {"image_proj.x": torch.zeros(1)})
    plus = kit.tensors("plus", host)
    with pytest.raises(KeyMismatch, match=r"lacks 'layers.0.1.1.weight'"):
        opens({name: t for name, t in plus.items() if name != "image_proj.layers.0.1.1.weight"})
    other = open_miniature(MEMORY, Miniature(unet={"block_out_channels": (32, 96)}))
    with pytest.raises(WrongFamily, match=r"7 cross-attentions.*\[32, 96\].*\[32, 64\]"):
        opens(kit.tensors("plain", other))


FACE_ID = {
    "faceid": {"proj.0.weight": (1024, 512), "proj.2.weight": (3072, 1024), "norm.weight": (768,)},
    "faceid plus": {"proj.0.weight": (1024, 512), "perceiver_resampler.proj_in.weight": (768, 1280)},
}


@pytest.mark.parametrize("name", FACE_ID)
def test_face_id_is_known_by_its_header(name: str, tmp_path: Path) -> None:
    shapes = {f"image_proj.{key}": shape for key, shape in FACE_ID[name].items()}
    path = headers.write_header(tmp_path / "x.safetensors", shapes | {"ip_adapter.1.to_k_ip.weight": (320, 768)})
    assert (identify(path).mechanism, identify(path).family) == ("ip-adapter-faceid", "sd1")
    with pytest.raises(UnknownKind, match="FaceID"):
        read_ip(path)


# ---- the CLIP that looks


def test_a_clip_is_looked_for_where_programs_keep_it(host: Any, clip: Path, tmp_path: Path) -> None:
    """The setting's, if it fits; beside the adapter, above it, in the model folders, in A1111's extension."""
    webui = tmp_path / "webui"
    path = kit.write(webui / "models" / "ControlNet" / "a.safetensors", kit.tensors("plain", host))
    wrong = write_clip(tmp_path / "wrong")
    config = (wrong / "config.json").read_text("utf-8").replace('"projection_dim": 12', '"projection_dim": 13')
    (wrong / "config.json").write_text(config, "utf-8")

    def found(**told: Any) -> Path | None:
        adapter = ip_adapter.open(path, host, MEMORY, **told)
        return find_clip_vision(adapter.eye.places, adapter.eye.fits)

    assert found(clip=clip) == clip and found(clip=wrong) is None
    with pytest.raises(ModelFileError, match=r"a sees pictures by .* 12 numbers\), which was not found.*image_encoder"):
        ip_adapter.open(path, host, MEMORY, clip=wrong).prepare(_condition(_picture(1)))
    comfy = tmp_path / "comfy"
    places = [
        *(webui / "extensions/sd-webui-controlnet/annotator/downloads/clip_vision/h", comfy / "clip_vision" / "h"),
        *(webui / "models" / "clip_vision" / "h", path.parent / "image_encoder"),
    ]
    for place in places:  # each is nearer than those before it
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(clip, target_is_directory=True)
        assert found(clip=wrong, model_dirs=(comfy,)) == place


def test_a_file_of_the_tower_alone_opens(tmp_path: Path) -> None:
    """ComfyUI's and A1111's form: the configuration is read from the shapes; of ViT-H, and of one that is opened."""
    config = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
        hidden_act="gelu",
    )
    tower = build_empty(lambda: CLIPVisionModelWithProjection(config)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.items()}
    found = vision_config(headers.write_header(tmp_path / "h.safetensors", shapes))
    assert found is not None and len(shapes) == 520
    for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        assert getattr(found, field) == getattr(config, field), field
    assert (found.patch_size, found.projection_dim, found.hidden_act) == (14, 1024, "gelu")
    small = CLIPVisionConfig(
        hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=64, patch_size=112
    )  # as narrow as a published one can be
    net = CLIPVisionModelWithProjection(small).eval()
    save_safetensors(tmp_path / "b.safetensors", dict(net.state_dict()), {})
    opened, shown = open_clip_vision(tmp_path / "b.safetensors", MEMORY), torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(opened.embedding(shown), ClipVision(net).embedding(shown))  # mapped: not aligned
