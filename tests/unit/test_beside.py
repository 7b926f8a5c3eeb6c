"""Text encoders beside a model's file: which file is which, and which of two is taken."""

from pathlib import Path

import pytest
import torch

from disegno.backbones._beside import clips_beside, encoders_beside, find_encoder
from disegno.weights.save import save_weights
from kit import gguf

pytestmark = pytest.mark.unit

_NAME = "text_model.final_layer_norm.weight"


def _written(folder: Path, *names: str) -> Path:
    """Return a model's path in a folder, with such files around it, each with its own number in it."""
    for number, name in enumerate(names):
        weight, path = torch.full((4,), float(number)), folder / name
        if path.suffix.lower() == ".gguf":
            gguf.write(path, {_NAME: gguf.plain(weight)})
        else:
            save_weights(path, {_NAME: weight}, {})
    return folder / "models" / "unet" / "sd3.5_medium-Q4_0.gguf"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("models/unet/clip_l.safetensors",), 0),
        (("models/clip/clip_l.gguf", "models/vae/clip_l.safetensors"), 0),
        (("models/text_encoders/CLIP_L-F16.GGUF",), 0),
        (("models/clip/clip-l-a.gguf", "models/clip/clip_l_z.safetensors"), 1),
        (("models/clip/clip_l.safetensors", "models/unet/clip_l.gguf"), 1),
        (("models/clip/my_clip_l.safetensors", "models/vae/clip_l.safetensors"), None),
    ],
)
def test_the_nearest_is_taken_and_of_two_one_that_is_whole(
    tmp_path: Path, names: tuple[str, ...], taken: int | None
) -> None:
    model = _written(tmp_path, *names)
    model.parent.mkdir(parents=True, exist_ok=True)
    found = encoders_beside(model, ["clip_l", "clip_g"])
    assert {name: tensors[_NAME][0].item() for name, tensors in found.items()} == (
        {} if taken is None else {"clip_l": taken}
    )


@pytest.mark.parametrize("name", ["t5xxl_fp16.safetensors", "t5-v1_1-xxl-encoder-Q8_0.gguf", "t5xxl.Q4_K_S.gguf"])
def test_t5_is_known_by_its_published_names(tmp_path: Path, name: str) -> None:
    model = _written(tmp_path, f"models/unet/{name}", "models/unet/umt5-xxl-encoder.gguf")
    assert find_encoder(model, "t5") == tmp_path / "models" / "unet" / name
    assert find_encoder(model, "clip_g") is None


def test_a_clip_has_the_names_of_its_class(tmp_path: Path) -> None:
    model = _written(tmp_path, "models/unet/clip_g.gguf")
    assert clips_beside(model, ["clip_g"])["clip_g"].keys() == {"final_layer_norm.weight"}
