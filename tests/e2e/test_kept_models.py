"""What a studio keeps open belongs to the model that is open now: after others, and after its file was replaced."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones.miniature import Miniature, write_sd1_checkpoint
from disegno.core.request import Hires, LoraUse
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.e2e

LAYERS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": 32,
    "lora_te_text_model_encoder_layers_0_mlp_fc1": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        write_sd1_checkpoint(folder / f"{name}.safetensors", Miniature(seed=seed))
    write_sd1_checkpoint(folder / "copy-of-a.safetensors", Miniature(seed=0))
    generator = torch.Generator().manual_seed(5)
    matrices = {
        f"{name}.lora_{way}.weight": torch.randn(shape, generator=generator)
        for name, width in LAYERS.items()
        for way, shape in (("down", (4, 32)), ("up", (width, 4)))
    }
    save_safetensors(folder / "ink.safetensors", matrices, {})
    return folder


@pytest.fixture
def studio(folder: Path, tmp_path: Path) -> Iterator[Studio]:
    yield Studio(Settings(model_dirs=(folder,), cache_dir=tmp_path, dtype="fp32", device="cpu"))


def _draw(studio: Studio, **fields: object) -> bytes:
    given: dict[str, object] = {"prompt": "a cat", "model": "a", "seed": 1, "steps": 1, "width": 64, "height": 64}
    *_, result = generate(Request(**(given | fields)), studio=studio)  # pyright: ignore[reportArgumentType]
    assert isinstance(result, Result)
    return result.images[0].tobytes()


def test_a_lora_acts_on_the_model_that_is_open_now(studio: Studio) -> None:
    ink = {"loras": (LoraUse(name="ink"),)}
    first, plain = _draw(studio, **ink), _draw(studio)
    for other in "bc":
        _draw(studio, model=other)
    assert _draw(studio, **ink) == first != plain
    assert _draw(studio, prompt="a dog", **ink) != _draw(studio, prompt="a dog")
    assert _draw(studio, model="copy-of-a", **ink) == first


def test_what_keeps_colours_knows_what_the_models_output_means_now(studio: Studio, folder: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    fix = {"controls": (ControlUnit(name="tile-colorfix", image=str(folder / "red.png")),), "steps": 2}
    alone = _draw(studio, prediction="v", **fix)
    studio.close()
    assert _draw(studio, **fix) != alone == _draw(studio, prediction="v", **fix)


def test_a_model_that_is_not_kept_leaves_memory_with_all_that_was_opened_for_it(studio: Studio) -> None:
    def gone(model: str, **fields: object) -> bool:
        _draw(studio, model=model, **fields)
        net = weakref.ref(studio.backbone(model).net)
        for other in (set("abc") | {"copy-of-a"}) - {model}:
            _draw(studio, model=other)
        gc.collect()
        return net() is None

    assert gone("a", loras=(LoraUse(name="ink"),), prediction="v")
    photo = Path(studio.settings.cache_dir) / "photo.png"
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(photo)
    canny = ControlUnit(name="canny", image=str(photo))
    assert gone("diorama", controls=(canny,))


def test_a_file_that_was_replaced_is_read_again(studio: Studio, folder: Path) -> None:
    write_sd1_checkpoint(folder / "mine.safetensors", Miniature(seed=0))
    assert _draw(studio, model="mine") == _draw(studio)
    write_sd1_checkpoint(folder / "mine.safetensors", Miniature(seed=1))
    assert _draw(studio, model="mine") == _draw(studio, model="b")


def test_the_hires_pass_of_the_same_model_keeps_what_was_said_of_it(studio: Studio) -> None:
    passes = [Hires(denoise=0.5, upscaler="Nearest", model=model) for model in (None, "a", "b")]
    same, named, other = (_draw(studio, hires=hires, prediction="v", steps=2) for hires in passes)
    assert same == named != other
