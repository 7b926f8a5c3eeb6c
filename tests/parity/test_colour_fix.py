"""The colour fix against sd-webui-controlnet's rule, written out slowly: of the noise, cell by cell, by its numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disegno.backbones import miniature, miniature_sd3, sd3
from disegno.backbones.base import Backbone
from disegno.controls.base import Condition
from disegno.controls.colour_fix import ColourFix, blur, open_colour_fix
from disegno.controls.strength import Use, Used, apply
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit
from disegno.diffusion.call import Call, Row
from disegno.memory import FULL_PRECISION, Memory

pytestmark = pytest.mark.parity

T = 401  # a whole timestep: A1111 rounds it


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return miniature.open_miniature()


def _image(seed: int = 1) -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def _call(backbone: Backbone, t: float = T) -> Call:
    """Two images, each with its prompt and its negative prompt."""
    g = torch.Generator().manual_seed(3)
    rows = tuple(Row(i % 2, i < 2, str(i), 0.5) for i in range(4))
    states = backbone.encode_text(["a", "b", "c", "d"])
    x = torch.randn(4, backbone.latent_channels, 8, 8, generator=g)
    return Call(x, torch.full((4,), t), states.tokens, rows, net=backbone.evaluate, pooled=states.pooled)


def _control(backbone: Any, seed: int = 1, which: Any = "first", **params: Any) -> ColourFix:
    unit = ControlUnit(name="tile-colorfix", params=params)
    return open_colour_fix(unit, backbone, which).prepare(Condition(_image(seed), str(seed)))


def _blurred(x: np.ndarray, k: int) -> np.ndarray:
    """Return each cell's mean over a square, (b c h w): the nearest cell stands for what lies outside."""
    out, (height, width) = np.empty_like(x), x.shape[-2:]
    for i in range(height):
        for j in range(width):
            ys = np.clip(np.arange(i - k, i + k + 1), 0, height - 1)
            xs = np.clip(np.arange(j - k, j + k + 1), 0, width - 1)
            out[..., i, j] = x[..., ys[:, None], xs].mean((-2, -1))
    return out


def test_the_blur_is_the_mean_of_a_square() -> None:
    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    for k in (1, 2, 9):
        np.testing.assert_allclose(blur(x, k).numpy(), _blurred(x.numpy().astype(np.float64), k), atol=1e-5)


@pytest.mark.parametrize(("weight", "k", "sharpness"), [(1.0, 3, 0.0), (0.4, 1, 0.0), (1.0, 2, 2.0), (1.7, 3, 1.0)])
def test_the_equations(weight: float, k: int, sharpness: float, backbone: Any) -> None:
    """In DDPM's coefficients, of x as the net sees it; float64. Tolerance: the net's float32 times 1 / sqrt(abar)."""
    call, control = _call(backbone), _control(backbone, variation=k, sharpness=sharpness)
    abar = float(backbone.table.alphas_cumprod[T])
    x, eps = call.x.numpy().astype(np.float64), call.run().numpy().astype(np.float64)
    origin = backbone.encode_image(_image() * 2 - 1).numpy().astype(np.float64)
    predicted = (x - (1 - abar) ** 0.5 * eps) / abar**0.5
    x0 = predicted - _blurred(predicted, k) + _blurred(origin, k)
    detail = 0.01 * sharpness
    softer = detail * _blurred(x0, k) + (1 - detail) * x0
    x0[2:] = softer[2:]
    fixed = (x - abar**0.5 * x0) / (1 - abar) ** 0.5
    w = min(weight, 1.0)
    found = Used(control, Use(weight))(call).run()
    np.testing.assert_allclose(found.numpy(), w * fixed + (1 - w) * eps, atol=2e-5)
    assert np.abs(fixed - eps).max() > 0.1


def _opened(family: str, folder: Path) -> Backbone:
    if family == "flow":
        return sd3.open(miniature_sd3.write_folder(folder / "sd3"), Memory(FULL_PRECISION))
    return miniature.open_miniature(made=miniature.Miniature(prediction=family))


@pytest.mark.parametrize("family", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("share", [0.9, 0.02])
def test_the_estimate_gets_the_pictures_colours_whatever_the_net_says(
    family: str, share: float, tmp_path: Path
) -> None:
    """Noise, velocity and flow: x0 is moved by the difference of the blurred latents."""
    opened = _opened(family, tmp_path)
    sigma = opened.table.sigmas[int(share * len(opened.table.sigmas))].reshape(1)
    call, control = _call(opened, float(opened.table.net_t(sigma))), _control(opened, variation=2)
    x = call.x / opened.prediction.scale(torch.ones(1, 1, 1, 1), sigma)
    before, after = (opened.prediction.denoise(x, sigma, c.run().float()) for c in (call, control(call)))
    origin = opened.encode_image(_image() * 2 - 1)
    expected = before - blur(before, 2) + blur(origin, 2)
    torch.testing.assert_close(after, expected, atol=1e-5 * float(before.abs().max()), rtol=1e-4)


def test_a_hires_pass_blurs_twice_as_wide(backbone: Any) -> None:
    assert _control(backbone, which="hires", variation=2).radius == 4
    assert torch.equal(_control(backbone, which="hires", variation=2).colours, _control(backbone, variation=4).colours)
    assert (_control(backbone).radius, _control(backbone).sharpness) == (8, 0.0)


def test_without_a_negative_prompt_there_is_nothing_to_sharpen(backbone: Any) -> None:
    call = _call(backbone).take(torch.tensor([0, 1]))
    a, b = (_control(backbone, variation=2, sharpness=s)(call).run() for s in (0, 2))
    assert torch.equal(a, b)


def test_halves_of_a_canvas_take_the_colours_of_two_pictures(backbone: Any) -> None:
    """Each in its region, as if it were alone there."""
    call = _call(backbone)
    left = torch.cat([torch.ones(1, 1, 8, 4), torch.zeros(1, 1, 8, 4)], dim=-1)
    a, b = _control(backbone, 1, variation=1), _control(backbone, 2, variation=1)
    both = apply([Used(a, Use(region=left)), Used(b, Use(region=1 - left))], call).run()
    torch.testing.assert_close(both[..., :3], a(call).run()[..., :3])
    torch.testing.assert_close(both[..., 5:], b(call).run()[..., 5:])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"params": {"variation": 65}}, "variation is a number from 1 to 64, not 65"),
        ({"params": {"variation": 2.5}}, "a whole number of cells, not 2.5"),
        ({"params": {"variation": "wide"}}, "not 'wide'"),
        ({"params": {"sharpness": 2.1}}, "sharpness is a number from 0 to 2, not 2.1"),
        ({"params": {"low": 2}}, "two parameters.*leave out its low"),
        ({"mode": "control", "layers": (1.0,)}, "leave out its mode and layers"),
        ({"annotate": "canny"}, "leave out its annotate"),
    ],
)
def test_what_it_does_not_know_is_said(fields: dict[str, Any], said: str, backbone: Any) -> None:
    with pytest.raises(RequestError, match=said):
        open_colour_fix(replace(ControlUnit(name="tile-colorfix"), **fields), backbone)
