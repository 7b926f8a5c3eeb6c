"""A ControlNet-XS of any sizes: as beside Stable Diffusion 2.x, new, and gone on with."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from disegno.backbones._lockstep import evaluate
from disegno.controls import controlnet_xs
from disegno.controls._xs_net import Heads, XsNet
from disegno.controls._xs_new import Sizes, draw, new_xs, xs_shapes
from disegno.controls.base import Condition
from disegno.diffusion.call import Call, Row
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.xs_files import originals_of, read_xs

pytestmark = pytest.mark.unit

MEMORY = Memory(FULL_PRECISION)


@dataclass(frozen=True)
class Host:
    """A UNet as in Stable Diffusion 2.x: heads of 64 channels, linear projections, two blocks a level."""

    net: UNet2DConditionModel
    family: str = "sd2"
    name: str = "small"
    fingerprint: str = "small"

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def evaluate(self, call: Call) -> Tensor:
        return evaluate(self.net, call.x, call.t, call.tokens, call.residuals, call.streams)


@pytest.fixture(scope="module")
def host() -> Host:
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=[1, 2],
        use_linear_projection=True,
    )
    return Host(net.eval().requires_grad_(False))


def _call(host: Host) -> Call:
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
    rows = tuple(Row(i, True, str(i), 0.0) for i in range(2))
    return Call(x, torch.tensor([900.0, 20.0]), tokens, rows, net=host.evaluate)


def _opened(tensors: dict[str, Tensor], host: Host, folder: Path) -> controlnet_xs.ControlNetXsController:
    save_file({name: t.contiguous() for name, t in originals_of(tensors).items()}, folder / "xs.safetensors")
    return controlnet_xs.open(folder / "xs.safetensors", host, MEMORY)


def test_a_new_one_adds_nothing_and_keeps_its_bits_on_disk(host: Host, tmp_path: Path) -> None:
    net = new_xs(host.net, (4, 8), torch.Generator().manual_seed(2))
    controller, call = _opened(net.state_dict(), host, tmp_path), _call(host)
    again = read_xs(tmp_path / "xs.safetensors").tensors
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items())
    control = controller.prepare(Condition(torch.rand(1, 3, 64, 64), "a"))
    torch.testing.assert_close(control(call).run(), call.run(), atol=1e-6, rtol=0.0)


def test_its_own_embedding_of_the_time_is_used(host: Host, tmp_path: Path) -> None:
    """As Stable Diffusion 2.1's file has it: then the model's own does not matter."""
    sizes = Sizes.of(host.net, (4, 8))
    linears = {"linear_1": (256, 64), "linear_2": (256, 256)}
    shapes = xs_shapes(sizes) | {f"time_embedding.{n}.weight": shape for n, shape in linears.items()}
    shapes |= {f"time_embedding.{n}.bias": shape[:1] for n, shape in linears.items()}
    generator = torch.Generator().manual_seed(3)
    controller = _opened({name: draw(name, shapes, generator) for name in shapes}, host, tmp_path)
    net, call = controller.net, _call(host)
    assert isinstance(net, XsNet) and net.time_embedding is not None
    hint = torch.zeros(1, 4, 8, 8)
    steps = [net.begin(hint, call.x, emb, call.t, call.tokens) for emb in (torch.zeros(2, 256), torch.ones(2, 256))]
    assert torch.equal(steps[0].emb, steps[1].emb)
    assert not torch.allclose(steps[0].emb[0], steps[0].emb[1])
    assert steps[0].embedded is not None and torch.equal(steps[0].embedded, steps[0].emb)  # the model's blocks have it
    control = controller.prepare(Condition(torch.rand(1, 3, 64, 64), "a"))
    assert not torch.allclose(control(call).run(), call.run(), atol=1e-3)


def test_it_runs_packed_in_bfloat16(host: Host, tmp_path: Path) -> None:
    """As the engine opens it where the processor is fast in bfloat16: close to float32, and as strong."""
    net = new_xs(host.net, (4, 8), torch.Generator().manual_seed(2))
    exact = _opened({name: t + 0.01 for name, t in net.state_dict().items()}, host, tmp_path)
    half = controlnet_xs.open(
        tmp_path / "xs.safetensors", host, Memory(replace(FULL_PRECISION, dtype=torch.bfloat16, packs=True))
    )
    call, condition = _call(host), Condition(torch.rand(1, 3, 64, 64), "a")
    with torch.inference_mode():
        plain, wanted = call.run(), exact.prepare(condition)(call).run()
        found = half.prepare(condition)(call).run()
    assert (wanted - plain).norm() > 0.05 * plain.norm()
    assert (found - wanted).norm() < 0.1 * (wanted - plain).norm()


def test_heads_follow_the_models_rule() -> None:
    sd1 = Heads.of({"attention_head_dim": 8}, (320, 640, 1280, 1280))
    sd2 = Heads.of({"attention_head_dim": [5, 10, 20, 20]}, (320, 640, 1280, 1280))
    assert [sd1.at(width) for width in (64, 128, 256)] == [8, 8, 8]
    assert [sd2.at(width) for width in (4, 8, 16, 128, 96)] == [1, 1, 1, 2, 2]
