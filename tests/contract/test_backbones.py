"""What every backbone must do: the miniatures of each family, through the same questions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from disegno.backbones import BACKBONES, diorama, miniature, miniature_sd2, sd1, sd2
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.backbones.base import Backbone, text_key
from disegno.backbones.miniature import Miniature, draw, nets, open_miniature, write_sd1_folder
from disegno.core.errors import CorruptFile, RequestError, ResourceError, WrongFamily
from disegno.diffusion.call import Call, Residuals, Row
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.text import minilm
from disegno.text.learnt import TextOptions
from disegno.weights.quantised import quantise_rows
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.contract

MEMORY = Memory(FULL_PRECISION)
PROMPTS = ["a red car on a city street", ""]


def _about(unet: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    return {
        "family": "diorama",
        "version": 0,
        "unet": unet,
        "vae": vae,
        "prediction_type": "v_prediction",
        "schedule": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        "defaults": {"width": 128, "height": 128, "steps": 12, "cfg": 4.5, "sampler": "ddim", "more": "ignored"},
        "conditions": {"canny": "control_canny.safetensors"},
    }


def write_diorama(path: Path) -> Path:
    """Return `path`, now a folder in the built-in model's format: drawn weights, MiniLM at its only size."""
    path.mkdir(parents=True)
    made = nets(Miniature(unet={"cross_attention_dim": minilm.WIDTH}))
    save_safetensors(path / "unet.safetensors", quantise_rows(made.unet), {})
    save_safetensors(path / "vae.safetensors", {key: tensor.half() for key, tensor in made.vae.items()}, {})
    network = build_empty(minilm.MiniLM)
    save_safetensors(path / "text.safetensors", quantise_rows(draw(network, 3)), {})
    words = {"[PAD]": 0, "[UNK]": 1, **{word: n for n, word in enumerate(("a", "red", "car", "on", "city"), 2)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "model.json").write_text(json.dumps(_about(made.unet_config, made.vae_config)), "utf-8")
    (path / "basecn.safetensors").touch()
    return path


@pytest.fixture(scope="module")
def diorama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diorama(tmp_path_factory.mktemp("built_in") / "diorama")


@pytest.fixture(scope="module", params=["sd1", "sd2", "diorama"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    if request.param == "sd1":
        return open_miniature(MEMORY)
    if request.param == "sd2":
        return sd2.open(miniature_sd2.write_folder(tmp_path_factory.mktemp("sd2") / "model"), MEMORY)
    return diorama.open(request.getfixturevalue("diorama_folder"), MEMORY)


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _call(backbone: Backbone, x: torch.Tensor, residuals: Residuals | None = None) -> Call:
    states = backbone.encode_text(PROMPTS[: len(x)])
    rows = tuple(Row(i, positive=True, text=key, progress=0.0) for i, key in enumerate(states.keys))
    t = torch.tensor([5.5, 900.0])[: len(x)]
    return Call(x, t, states.tokens, rows, net=backbone.evaluate, residuals=residuals)


def test_the_registry_names_every_family() -> None:
    assert {"sd1", "sd2", "sdxl", "sd3", "diorama"} <= set(BACKBONES)
    assert not any(name.startswith("miniature") for name in BACKBONES)
    for name in BACKBONES:
        module = BACKBONES.load(name)
        assert name == module.FAMILY
        assert callable(module.open)


def test_what_it_is_is_said(backbone: Backbone) -> None:
    assert backbone.family in BACKBONES
    assert backbone.name and len(backbone.fingerprint) == 64
    assert (backbone.latent_channels, backbone.in_channels, backbone.downscale) == (4, 4, 8)
    assert backbone.table.sigmas.shape == (1000,)
    assert backbone.warnings == []
    backbone.check_size(backbone.defaults.width, backbone.defaults.height)


def test_text_states_are_named_by_content(backbone: Backbone) -> None:
    both, one = backbone.encode_text(PROMPTS), backbone.encode_text(PROMPTS[:1])
    assert both.tokens.shape[0] == len(both.keys) == 2
    assert both.tokens.dtype == torch.float32
    assert both.keys[0] != both.keys[1]
    assert both.keys == tuple(text_key(row) for row in both.tokens)
    assert torch.allclose(both.tokens[:1], one.tokens, atol=1e-5)
    assert both.warnings == ()


def test_a_long_prompt_is_cut_and_said(backbone: Backbone) -> None:
    states = backbone.encode_text(["red car " * 60])
    assert states.tokens.shape == backbone.encode_text([""]).tokens.shape
    assert len(states.warnings) == 1 and "was cut off" in states.warnings[0]


def _read(backbone: Backbone, text: str, **options: Any) -> torch.Tensor:
    states = backbone.read_prompt(text, TextOptions(**options))
    assert states.keys == (text_key(states.tokens[0]),) and states.warnings == ()
    return states.tokens


def test_a_plain_prompt_is_its_caption(backbone: Backbone) -> None:
    for text in PROMPTS:
        assert torch.allclose(_read(backbone, text), backbone.encode_text([text]).tokens, atol=1e-6)


def test_a_long_prompt_has_as_many_chunks_as_it_needs(backbone: Backbone) -> None:
    one = _read(backbone, "").shape[1]
    long = _read(backbone, "red car " * 60)
    assert long.shape[1] in (2 * one, 3 * one) and long.isfinite().all()
    broken = _read(backbone, "red car BREAK on a city")
    assert torch.allclose(broken[:, :one], _read(backbone, "red car"), atol=1e-6)
    assert torch.allclose(broken[:, one:], _read(backbone, "on a city"), atol=1e-6)


def test_emphasis_weighs_its_words_and_nothing_else(backbone: Backbone) -> None:
    plain, weighed = _read(backbone, "red car on city"), _read(backbone, "red (car:1.5) on city", emphasis="no-norm")
    ratio = (weighed / plain).nan_to_num(1.0)
    changed = (ratio - 1).abs().amax(dim=(0, 2)) > 1e-3
    assert changed.sum() == 1
    assert torch.allclose(weighed[:, changed], 1.5 * plain[:, changed], atol=1e-5)
    assert torch.allclose(_read(backbone, "red (car:1.5) on city", emphasis="ignore"), plain, atol=1e-6)
    kept = _read(backbone, "red (car:1.5) on city")
    size = [states.square().mean().sqrt() for states in (plain, weighed, kept)]
    assert not torch.allclose(kept, weighed) and abs(size[2] - size[0]) <= abs(size[1] - size[0]) + 0.2 * size[0]
    literal = _read(backbone, "red (car) on city", emphasis="none")
    assert not torch.allclose(literal[:, :6], plain[:, :6], atol=1e-3)


def test_a_weight_beyond_all_numbers_is_an_error(backbone: Backbone) -> None:
    with pytest.raises(RequestError, match="beyond all numbers"):
        backbone.read_prompt("(car:" + "9" * 400 + ")", TextOptions())


def test_latents_and_pictures_have_their_sizes_and_ranges(backbone: Backbone) -> None:
    latents = backbone.encode_image(_noise(2, 3, 64, 96).tanh())
    assert latents.shape == (2, 4, 8, 12)
    pictures = backbone.decode(latents)
    assert pictures.shape == (2, 3, 64, 96)
    assert pictures.dtype == torch.float32
    assert pictures.min() >= 0 and pictures.max() <= 1


def test_a_picture_does_not_depend_on_its_batch(backbone: Backbone) -> None:
    images, latents = _noise(3, 3, 64, 64).tanh(), _noise(3, 4, 8, 8)
    assert torch.equal(backbone.encode_image(images)[1:2], backbone.encode_image(images[1:2]))
    assert torch.equal(backbone.decode(latents)[1:2], backbone.decode(latents[1:2]))


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (16, 8)])
def test_evaluation_keeps_the_shape_at_any_size(backbone: Backbone, size: tuple[int, int]) -> None:
    out = _call(backbone, _noise(2, 4, *size)).run()
    assert out.shape == (2, 4, *size)
    assert out.dtype == torch.float32
    assert out.isfinite().all()


@torch.no_grad()
def test_rows_have_their_own_noise_level_and_text(backbone: Backbone) -> None:
    x = _noise(2, 4, 8, 8)
    both, first = _call(backbone, x).run(), _call(backbone, x[:1]).run()
    assert torch.allclose(both[:1], first, atol=1e-5)


def test_gradients_reach_residuals_and_not_the_weights(backbone: Backbone) -> None:
    shapes = [(32, 8), (32, 8), (32, 4), (64, 4)]
    down = tuple(torch.zeros(2, c, s, s, requires_grad=True) for c, s in shapes)
    mid = torch.zeros(2, 64, 4, 4, requires_grad=True)
    bare, with_zeros = _call(backbone, _noise(2, 4, 8, 8)), _call(backbone, _noise(2, 4, 8, 8), Residuals(down, mid))
    out = with_zeros.run()
    assert torch.equal(out, bare.run())
    out.square().mean().backward()
    assert all(r.grad is not None and r.grad.abs().sum() > 0 for r in (*down, mid))
    assert all(p.grad is None for p in backbone.net.parameters())


@pytest.mark.parametrize(("width", "height"), [(60, 64), (64, 65), (8, 64)])
def test_sizes_that_cannot_be_drawn_are_refused_with_one_that_can(backbone: Backbone, width: int, height: int) -> None:
    with pytest.raises(RequestError, match=r"draws multiples of 8 from 16 pixels on\. Try (64|16|56)"):
        backbone.check_size(width, height)


# ---- the built-in model's format


def test_the_built_in_models_words_are_taken_over(diorama_folder: Path) -> None:
    opened = diorama.open(diorama_folder, MEMORY)
    assert isinstance(opened, LatentDiffusion)
    assert (opened.family, opened.prediction.name) == ("diorama", "v")
    assert (opened.defaults.steps, opened.defaults.cfg, opened.defaults.sampler) == (12, 4.5, "ddim")
    assert opened.conditions == {"canny": diorama_folder / "control_canny.safetensors"}
    assert opened.base_control == diorama_folder / "basecn.safetensors"
    assert "clip_skip 2" in opened.encode_text(["a"], clip_skip=2).warnings[0]


def test_models_that_are_not_there_or_of_another_family(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"has no model\.json"):
        diorama.open(tmp_path, MEMORY)
    (tmp_path / "model.json").write_text(json.dumps(_about({}, {}) | {"family": "sd9"}), "utf-8")
    with pytest.raises(WrongFamily, match="is for sd9, not for diorama"):
        diorama.open(tmp_path, MEMORY)
    (tmp_path / "model.json").write_text('{"family": "diorama"}', "utf-8")
    with pytest.raises(CorruptFile, match="no description of a model"):
        diorama.open(tmp_path, MEMORY)
    with pytest.raises(RequestError, match="give a model file or folder"):
        sd1.open(None, MEMORY)


def _spoil(part: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part).write_text(text, "utf-8") and None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spoil("unet/config.json", "{"), "cannot be read as JSON"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "has no weights"),
    ],
    ids=["bad json", "no weights"],
)
def test_spoilt_folders_are_refused(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    folder = write_sd1_folder(tmp_path / "model")
    spoil(folder)
    with pytest.raises(CorruptFile, match=words):
        sd1.open(folder, MEMORY)


def test_clip_skip_beyond_the_encoder_is_refused() -> None:
    with pytest.raises(RequestError, match="clip_skip is 4; this text encoder has 3 layers"):
        miniature.open_miniature(MEMORY).encode_text(["a"], clip_skip=4)
