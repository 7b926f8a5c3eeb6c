"""A model that lacks a tensor, or has one of another rank, is refused with its name; nothing else is raised."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from disegno.backbones import miniature, miniature_sd3
from disegno.core.errors import KeyMismatch
from disegno.core.settings import Settings
from disegno.engine.studio import Studio
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

_CLIP = "cond_stage_model.transformer.text_model."
_NET = "model.diffusion_model."
_CLIP_G = "text_encoders.clip_g.transformer."
SD1 = (
    f"{_CLIP}embeddings.token_embedding.weight",
    f"{_CLIP}embeddings.position_embedding.weight",
    f"{_CLIP}encoder.layers.0.mlp.fc1.weight",
    f"{_NET}input_blocks.0.0.weight",
    f"{_NET}out.2.weight",
    "first_stage_model.decoder.conv_in.weight",
)
SD3 = (
    f"{_NET}context_embedder.weight",
    f"{_NET}y_embedder.mlp.0.weight",
    f"{_NET}pos_embed",
    f"{_NET}final_layer.linear.weight",
    f"{_CLIP_G}text_model.embeddings.token_embedding.weight",
    f"{_CLIP_G}text_projection.weight",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Return a model of each family, by its name."""
    folder = tmp_path_factory.mktemp("models")
    yield {
        "sd1": miniature.write_sd1_checkpoint(folder / "sd1.safetensors"),
        "sd3": miniature_sd3.write_file(folder / "sd3.safetensors"),
    }


@pytest.mark.parametrize("shape", [None, (), (64,)], ids=str)
@pytest.mark.parametrize(("family", "name"), [*(("sd1", n) for n in SD1), *(("sd3", n) for n in SD3)])
def test_it_is_refused_by_name(
    sound: dict[str, Path], tmp_path: Path, family: str, name: str, shape: tuple[int, ...] | None
) -> None:
    tensors = load_file(sound[family])
    assert name in tensors
    other = {} if shape is None else {name: torch.zeros(shape)}
    path = tmp_path / "spoilt.safetensors"
    save_safetensors(path, {key: tensor for key, tensor in tensors.items() if key != name} | other, {})
    studio = Studio(Settings(model_dirs=(), cache_dir=tmp_path / "cache", device="cpu", dtype="fp32"))
    with pytest.raises(KeyMismatch):
        studio.open_model(identify(path), studio.memory)
