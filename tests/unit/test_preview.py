"""Live previews: a linear map fitted to the VAE, or a tiny decoder; asked for, and without effect on what is drawn."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderTiny
from torch import Tensor
from torch.nn import functional as F

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from disegno.backbones._tiny_decoder import open_tiny_decoder
from disegno.core.errors import UnknownKind, WrongFamily
from disegno.core.result import Progress
from disegno.engine.preview import fit, open_decoder
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

MEMORY = Memory(FULL_PRECISION)
MIX = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
REQUEST = Request(prompt="a cat", model="mini", seed=3, steps=6, width=64, height=64)


class LinearVae:
    """A backbone whose VAE is linear: a cell's latents are its mean colour, mixed."""

    downscale, latent_channels, fingerprint, preview, family = 8, 4, "linear", None, "sd1"

    def __init__(self) -> None:
        self.encoded = 0

    def encode_image(self, images: Tensor) -> Tensor:
        self.encoded += 1
        return torch.einsum("lc,bchw->blhw", MIX, F.avg_pool2d(images, 8))

    def decode(self, latents: Tensor) -> Tensor:
        colours = torch.einsum("cl,blhw->bchw", torch.linalg.pinv(MIX), latents)
        return F.interpolate(colours, scale_factor=8.0) / 2 + 0.5


def test_the_map_of_a_linear_vae_is_exact() -> None:
    backbone = LinearVae()
    picture = F.interpolate(torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(1)), scale_factor=16.0)
    latents = backbone.encode_image(picture * 2 - 1)
    found = fit(backbone)(latents)
    assert found.shape == picture.shape
    smooth = F.interpolate(F.avg_pool2d(picture, 8), scale_factor=8.0, mode="bilinear")
    assert torch.allclose(found, smooth, atol=1e-3)


def test_a_map_is_fitted_once_and_kept(tmp_path: Path) -> None:
    backbone, settings = LinearVae(), Settings(cache_dir=tmp_path)
    latents = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    first = open_decoder(backbone, settings, MEMORY)(latents)
    cost = backbone.encoded
    assert open_decoder(backbone, settings, MEMORY)(latents).equal(first) and backbone.encoded == cost
    (tmp_path / "previews.json").write_text("{", "utf-8")  # damaged: fitted again
    assert open_decoder(backbone, settings, MEMORY)(latents).equal(first) and backbone.encoded > cost


def _decoder(channels: int = 4) -> dict[str, Tensor]:
    return miniature.draw(
        build_empty(lambda: DecoderTiny(channels, 3, (3, 3, 3, 1), (8,) * 4, 2, "relu", "nearest")), 1
    )


def _original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return them under TAESD's own names: the clamp is layer 0."""
    split = {name: name.removeprefix("layers.").partition(".") for name in tensors}
    return {f"{int(split[name][0]) + 1}.{split[name][2]}": t for name, t in tensors.items()}


def test_a_tiny_decoder_opens_from_every_layout(tmp_path: Path) -> None:
    tensors = _decoder()
    whole = {f"decoder.{name}": t for name, t in tensors.items()} | {"encoder.layers.0.weight": torch.zeros(1)}
    (tmp_path / "folder").mkdir()
    save_safetensors(tmp_path / "folder" / "diffusion_pytorch_model.safetensors", whole, {})
    save_safetensors(tmp_path / "taesd_decoder.safetensors", _original(tensors), {})
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    paths = (tmp_path / "folder", tmp_path / "taesd_decoder.safetensors", tmp_path)
    found = [open_tiny_decoder(path, 4, MEMORY)(latents) for path in paths]
    assert found[0].shape == (1, 3, 32, 48) and 0 <= found[0].min() < found[0].max() <= 1
    assert found[1].equal(found[0]) and found[2].equal(found[0])


def test_a_folder_holds_the_decoders_of_several_families(tmp_path: Path) -> None:
    for name, channels, seed in (("taesd", 4, 1), ("taesdxl", 4, 2), ("taesd3", 16, 3)):
        tensors = {key: tensor * seed for key, tensor in _original(_decoder(channels)).items()}
        save_safetensors(tmp_path / f"{name}_decoder.safetensors", tensors, {})
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    one, xl = (open_tiny_decoder(tmp_path, 4, MEMORY, family)(latents) for family in ("sd1", "sdxl"))
    assert not one.equal(xl)
    assert xl.equal(open_tiny_decoder(tmp_path / "taesdxl_decoder.safetensors", 4, MEMORY)(latents))
    open_tiny_decoder(tmp_path, 16, MEMORY, "sd3")
    (tmp_path / "taesdxl_decoder.safetensors").unlink()
    with pytest.raises(UnknownKind, match=r"tiny decoder of sdxl\. Expected one of: taesdxl_decoder"):
        open_tiny_decoder(tmp_path, 4, MEMORY, "sdxl")


def test_a_decoder_of_another_model_is_refused(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "sd3.safetensors", _original(_decoder(16)), {})
    save_safetensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(WrongFamily, match="16 latent channels"):
        open_tiny_decoder(tmp_path / "sd3.safetensors", 4, MEMORY)
    with pytest.raises(UnknownKind, match="TAESD"):
        open_tiny_decoder(tmp_path / "other.safetensors", 4, MEMORY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownKind, match="taesd_decoder"):
        open_tiny_decoder(tmp_path / "empty", 4, MEMORY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    (folder / "tiny").mkdir()
    save_safetensors(folder / "tiny" / "taesd_decoder.safetensors", _original(_decoder()), {})
    return folder


def _settings(folder: Path, **more: object) -> Settings:
    return replace(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"), **more)


def _events(studio: Studio, every: int, batch: int = 1) -> Iterator[Progress | Result]:
    return generate(replace(REQUEST, batch=batch), studio=studio, preview_every=every)


def test_previews_come_when_asked_and_change_nothing(folder: Path) -> None:
    for settings in (_settings(folder), _settings(folder, preview_decoder=folder / "tiny")):
        studio = Studio(settings)
        events = list(_events(studio, 2, batch=2))
        shown = {e.step: [p.size for p in e.previews] for e in events if isinstance(e, Progress) and e.previews}
        assert shown == {step: [(64, 64)] * 2 for step in (2, 4, 6)}
        silent = list(_events(studio, 0, batch=2))
        assert not any(event.previews for event in silent if isinstance(event, Progress))
        assert [i.tobytes() for i in events[-1].images] == [i.tobytes() for i in silent[-1].images]


def test_the_built_in_models_preview_is_like_its_picture() -> None:
    """Measured: 0.78 of the variance of an example's colours; a constant picture has 0."""
    from PIL import Image

    from disegno.backbones import diorama

    backbone = diorama.open(None, MEMORY)
    example = Path(diorama.__file__).parent.parent / "data/diorama/examples/car.png"
    pixels = torch.from_numpy(np.array(Image.open(example).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    found = fit(backbone)(backbone.encode_image(pixels * 2 - 1))
    cells, shown = F.avg_pool2d(pixels, 8), F.avg_pool2d(found, 8)
    explained = 1 - ((shown - cells) ** 2).sum() / ((cells - cells.mean(dim=(2, 3), keepdim=True)) ** 2).sum()
    assert explained > 0.6
