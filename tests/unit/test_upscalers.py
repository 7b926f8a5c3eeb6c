"""Networks that enlarge: known by their names, alike under every trainer's names, opened without running anything."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from disegno.core.errors import KeyMismatch, UnknownKind, UnknownName
from disegno.core.settings import Settings
from disegno.engine import upscale
from disegno.engine.studio import Studio
from disegno.engine.upscale import FILTERS, LATENT_MODES, enlarge_latents, enlarged_once, find_upscaler, latent_mode
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.upscalers import UPSCALERS, compact, esrgan
from disegno.weights.identify import identify
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

MEMORY = Memory(FULL_PRECISION)


def drawn(net: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in net.state_dict().items()}


def esrgan_tensors(num_ups: int = 2, shuffle: int = 1) -> dict[str, Tensor]:
    return drawn(build_empty(lambda: esrgan.Rrdb(8, 4, 2, num_ups, shuffle)))


def _named(tensors: dict[str, Tensor], block: str, names: dict[str, str]) -> dict[str, Tensor]:
    """Return the tensors by other names: `block` a pattern of (block, part, convolution), `names` of the rest."""

    def name(key: str) -> str:
        if found := re.fullmatch(r"body\.(\d+)\.parts\.(\d)\.convs\.(\d)\.(\w+)", key):
            return block.format(found[1], int(found[2]) + 1, int(found[3]) + 1) + "." + found[4]
        stem, _, last = key.rpartition(".")
        return f"{names[stem]}.{last}"

    return {name(key): tensor for key, tensor in tensors.items()}


def real(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return them under Real-ESRGAN's names."""
    names = {"first": "conv_first", "trunk": "conv_body", "hr": "conv_hr", "last": "conv_last"}
    names |= {f"ups.{i}": f"conv_up{i + 1}" for i in range(3)}
    return _named(tensors, "body.{}.rdb{}.conv{}", names)


def later(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return them under the names of ESRGAN's later code."""
    names = {"first": "conv_first", "trunk": "trunk_conv", "hr": "HRconv", "last": "conv_last"}
    names |= {f"ups.{i}": f"upconv{i + 1}" for i in range(3)}
    return _named(tensors, "RRDB_trunk.{}.RDB{}.conv{}", names)


def first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return them under the names of the first ESRGAN: numbers, two or three apart, in order."""
    num_ups = sum(key.startswith("ups.") and key.endswith("weight") for key in tensors)
    names = {"first": "model.0", "trunk": "model.1.sub.2"} | {f"ups.{i}": f"model.{3 + 3 * i}" for i in range(num_ups)}
    names |= {"hr": f"model.{2 + 3 * num_ups}", "last": f"model.{4 + 3 * num_ups}"}
    return _named(tensors, "model.1.sub.{}.RDB{}.conv{}.0", names)


PIXELS = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("num_ups", [0, 1, 2, 3])
def test_one_network_under_three_names_is_one_network(num_ups: int, tmp_path: Path) -> None:
    tensors, outs = esrgan_tensors(num_ups), []
    for dialect in (real, later, first):
        save_safetensors(tmp_path / f"{dialect.__name__}.safetensors", dialect(tensors), {})
        card = identify(tmp_path / f"{dialect.__name__}.safetensors")
        assert (card.kind, card.mechanism) == ("upscaler", "esrgan")
        network = esrgan.open(card.path, MEMORY)
        assert network.scale == 2**num_ups
        outs.append(network(PIXELS))
    assert outs[0].shape == (1, 3, 12 * 2**num_ups, 10 * 2**num_ups)
    assert all(out.equal(outs[0]) for out in outs[1:])


@pytest.mark.parametrize("shuffle, scale", [(2, 2), (4, 1)])
def test_real_esrgans_small_scales_shuffle_pixels_first(shuffle: int, scale: int, tmp_path: Path) -> None:
    save_safetensors(tmp_path / "up.safetensors", real(esrgan_tensors(2, shuffle)), {})
    network = esrgan.open(tmp_path / "up.safetensors", MEMORY)
    assert (network.scale, network.multiple) == (scale, shuffle)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (13, 11, 3), dtype=np.uint8))
    assert enlarged_once(network, picture).size == (11 * scale, 13 * scale)  # sides that are no multiple are padded


@pytest.mark.parametrize("prefix", ["", "params.", "params_ema."])
def test_the_compact_network_adds_to_the_picture(prefix: str, tmp_path: Path) -> None:
    tensors = drawn(build_empty(lambda: compact.Compact((3, 8, 8, 48), 4)))
    save_safetensors(tmp_path / "c.safetensors", {prefix + key: t for key, t in tensors.items()}, {})
    card = identify(tmp_path / "c.safetensors")
    assert (card.kind, card.mechanism) == ("upscaler", "compact")
    network = compact.open(card.path, MEMORY)
    assert network.scale == 4 and network(PIXELS).shape == (1, 3, 48, 40)
    silent = compact.Compact((3, 8, 8, 48), 4)
    for parameter in silent.parameters():
        nn.init.zeros_(parameter)
    assert silent(PIXELS).equal(PIXELS.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    strange = real(esrgan_tensors()) | {"body.0.rdb1.conv1x1.weight": torch.zeros(4, 8, 1, 1)}
    save_safetensors(tmp_path / "plus.safetensors", strange, {})
    with pytest.raises(UnknownKind, match="conv1x1"):
        esrgan.open(tmp_path / "plus.safetensors", MEMORY)
    torn = {key: t for key, t in real(esrgan_tensors()).items() if "conv_hr" not in key}
    save_safetensors(tmp_path / "torn.safetensors", torn, {})
    with pytest.raises(KeyMismatch, match=r"hr\.weight"):
        esrgan.open(tmp_path / "torn.safetensors", MEMORY)


def test_a_large_picture_goes_through_a_network_in_parts(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "up.safetensors", real(esrgan_tensors(1)), {})
    network = esrgan.open(tmp_path / "up.safetensors", MEMORY)
    coarse = np.random.default_rng(0).integers(0, 255, (25, 33, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((264, 200))
    found = np.asarray(enlarged_once(network, picture)).astype(int)
    whole = (network(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255).clamp(0, 1) * 255).round()
    assert found.shape == (400, 528, 3)
    # the parts share 32 pixels, and 33 convolutions of 3 see a little farther than that
    assert np.abs(found - whole[0].permute(1, 2, 0).numpy()).max() <= 2


def test_upscalers_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "realfine_x4").mkdir()  # of pictures, say: it is not meant
    save_safetensors(tmp_path / "RealFine_x4.safetensors", real(esrgan_tensors()), {})
    studio = Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path / "cache", device="cpu", dtype="fp32"))
    picture = Image.new("RGB", (20, 16), (200, 90, 30))
    for name in (*FILTERS, "lanczos", "realfine_x4", str(tmp_path / "RealFine_x4.safetensors")):
        assert find_upscaler(name, studio)(picture, 40, 30).size == (40, 30)
    assert find_upscaler("RealFine_x4", studio)(picture, 160, 128).size == (160, 128)  # twice, then made smaller
    with pytest.raises(UnknownName, match="Lanczos"):
        find_upscaler("Lanzcos", studio)
    assert set(UPSCALERS.names()) == {"compact", "esrgan"}


def test_a_side_that_is_long_enough_does_not_grow_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def larger(network: Any, picture: Image.Image) -> Image.Image:
        seen.append(picture.size)
        return picture.resize((picture.width * 4, picture.height * 4))

    monkeypatch.setattr(upscale, "enlarged_once", larger)
    studio: Any = SimpleNamespace(upscaler=str)
    assert find_upscaler("net", studio)(Image.new("RGB", (64, 2)), 80, 80).size == (80, 80)
    assert seen == [(64, 2), (80, 8), (80, 32)]


def test_a_network_that_cleans_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def cleaned(network: Any, picture: Image.Image) -> Image.Image:
        seen.append(picture.size)
        return Image.new("RGB", picture.size, (9, 9, 9))

    monkeypatch.setattr(upscale, "enlarged_once", cleaned)
    studio: Any = SimpleNamespace(upscaler=str)
    picture = Image.new("RGB", (20, 12))
    for cleans, size, times in ((True, (20, 12), 1), (True, (16, 8), 1), (True, (10, 6), 0), (True, (40, 24), 1)):
        assert find_upscaler("1x", studio, cleans)(picture, *size).size == size and len(seen) == times, size
        seen.clear()
    assert find_upscaler("1x", studio)(picture, 20, 12).tobytes() == picture.tobytes()  # a hires pass of the same size


def test_latent_modes_are_torchs() -> None:
    latents = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    found = [enlarge_latents(latents, 12, 10, mode) for mode in LATENT_MODES.values()]
    assert all(out.shape == (1, 4, 12, 10) for out in found)
    assert found[4].equal(latents.repeat_interleave(2, 2).repeat_interleave(2, 3))
    small = [enlarge_latents(latents, 3, 3, LATENT_MODES[name]) for name in ("Latent", "Latent (antialiased)")]
    assert not small[0].equal(small[1])
    assert latent_mode("latent (BICUBIC)") == LATENT_MODES["Latent (bicubic)"] and latent_mode("Lanczos") is None
