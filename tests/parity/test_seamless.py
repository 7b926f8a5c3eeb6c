"""A canvas without edges: what is moved across one comes out moved, from the real classes' nets and from the engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature_sd3
from disegno.core.errors import RequestError
from disegno.core.request import Hires
from disegno.engine.seamless import going_round
from disegno.packing import PackedConv2d, can_pack

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(Settings(dtype="fp32", device="cpu", model_dirs=()))


def _moved(x: Tensor) -> Tensor:
    """Return x moved over both edges, by whole cells of the deepest level."""
    cells = x.shape[-1] // 4
    return x.roll((cells, 2 * cells), dims=(2, 3))


@torch.inference_mode()
def test_net_and_autoencoder_know_no_edge(studio: Studio) -> None:
    backbone = studio.backbone("diorama")
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens, t = backbone.encode_text(["a red car"]).tokens, torch.tensor([300.0])

    def net(x: Tensor) -> Tensor:
        return backbone.net(x, t, encoder_hidden_states=tokens, return_dict=False)[0]

    for part, ask in ((backbone.net, net), (backbone.vae, backbone.decode)):
        plain = ask(x)
        assert not torch.allclose(ask(_moved(x)), _moved(plain), atol=0.05)
        with going_round(part, True):
            round_ = ask(x)
            assert torch.allclose(ask(_moved(x)), _moved(round_), atol=1e-4)
        assert torch.equal(ask(x), plain) and not torch.equal(plain, round_)


def _picture(studio: Studio, **asked: Any) -> np.ndarray:
    request = Request(prompt="a forest of green trees by day", seed=3, steps=8, **asked)
    (result,) = (event for event in generate(request, studio=studio) if isinstance(event, Result))
    return np.asarray(result.images[0], float)


def _step(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def test_a_picture_goes_on_at_the_opposite_edge(studio: Studio) -> None:
    ordinary, seamless = _picture(studio), _picture(studio, seamless=True)
    assert min(_step(ordinary[:, 0], ordinary[:, -1]), _step(ordinary[0], ordinary[-1])) > 8
    for picture in (seamless, seamless.transpose(1, 0, 2)):
        inside = np.mean([_step(picture[:, k], picture[:, k + 1]) for k in range(len(picture) - 1)])
        assert _step(picture[:, 0], picture[:, -1]) < 2.5 * inside
    assert np.array_equal(_picture(studio), ordinary)


def test_what_cannot_be_without_a_seam_says_so(studio: Studio, tmp_path: Path) -> None:
    for asked in ({"tiles": {}}, {"vae_tile": 64}):
        with pytest.raises(ValueError, match="opposite edge"):
            Request(prompt="a red car", seamless=True, **asked)
    folder = tmp_path / "sd3"
    miniature_sd3.write_folder(folder, miniature_sd3.Sd3())
    with pytest.raises(RequestError, match="patch by patch"):
        _picture(studio, seamless=True, model=str(folder))
    with pytest.raises(RequestError, match="patch by patch"):
        _picture(studio, seamless=True, hires=Hires(model=str(folder), denoise=0.5))


@pytest.mark.skipif(not can_pack(), reason="this processor packs no layers")
@pytest.mark.parametrize("stride", [1, 2])
def test_packed_layers_go_round_as_plain_ones(stride: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 64, 3, stride, 1).to(torch.bfloat16).requires_grad_(False)
    packed, x = PackedConv2d(conv), torch.randn(2, 32, 16, 16).to(torch.bfloat16)
    plain = nn.Sequential(conv)
    before = packed(x)
    with going_round(packed, True), going_round(plain, True):
        assert torch.allclose(packed(x).float(), plain(x).float(), atol=0.02)
        assert not torch.equal(packed(x), before)
    assert torch.equal(packed(x), before)
