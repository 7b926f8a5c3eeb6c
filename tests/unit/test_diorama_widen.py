"""A wider decoder draws the same pictures at first, its copies of a channel learn different things, and it opens."""

from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from disegno.backbones._autoencoder import DECODER_WIDTHS, build_autoencoder

from recipes.diorama.scale import vae  # isort: skip
from recipes.diorama.widen import wide_config, widened, widths_of

pytestmark = pytest.mark.unit

CONFIG: dict[str, Any] = dict(vae(64, (8, 8, 16, 16), 4))


def _decoder(net: AutoencoderKL) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in net.state_dict().items() if name.startswith("decoder.")}


@pytest.fixture
def small() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_autoencoder(CONFIG).eval()


@pytest.mark.parametrize("times", [2, 3])
def test_a_wider_decoder_draws_the_same_and_its_copies_part(small: AutoencoderKL, times: int) -> None:
    wide = build_autoencoder({**CONFIG, DECODER_WIDTHS: [times * width for width in CONFIG["block_out_channels"]]})
    weights = widened(_decoder(small), times, Generator().manual_seed(1))
    wide.load_state_dict(small.state_dict() | weights)
    latents = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(_drawn(small, latents), _drawn(wide, latents), atol=1e-5)
        assert torch.equal(_encoded(small), _encoded(wide))
    _drawn(wide, latents).square().mean().backward()
    gradient = wide.decoder.conv_in.weight.grad
    assert gradient is not None
    first, second = gradient[0::times], gradient[1::times]
    assert float((first - second).abs().max()) > 0.05 * float(first.abs().max())
    assert wide_config(CONFIG, weights) == dict(CONFIG) | {DECODER_WIDTHS: list(wide.config[DECODER_WIDTHS])}
    assert wide_config(CONFIG, _decoder(small)) == CONFIG
    assert list(widths_of(wide.config)) == list(wide.config[DECODER_WIDTHS])


def _drawn(net: AutoencoderKL, latents: Tensor) -> Tensor:
    return net.decode(cast(torch.FloatTensor, latents), return_dict=False)[0]


def _encoded(net: AutoencoderKL) -> Tensor:
    return net.encode(torch.ones(1, 3, 64, 64), return_dict=False)[0].mean


def test_a_decoder_of_other_widths_is_saved_and_read_as_it_is() -> None:
    config = {**CONFIG, DECODER_WIDTHS: [16, 16, 32, 64]}
    net = build_autoencoder(config)
    again = build_autoencoder(dict(net.config))
    again.load_state_dict(net.state_dict())
    assert net.decoder.conv_in.out_channels == 64 and net.encoder.conv_in.out_channels == 8
    assert net.config["block_out_channels"] == CONFIG["block_out_channels"]
