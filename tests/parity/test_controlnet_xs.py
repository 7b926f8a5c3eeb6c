"""ControlNet-XS against outputs of the original program (vislearn/ControlNet-XS @8d90ed4), and its files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetXSAdapter, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from disegno.controls import controlnet_xs
from disegno.controls._xs_net import Heads, XsNet, groups_of
from disegno.controls._xs_new import Sizes, xs_shapes
from disegno.controls.base import Condition
from disegno.controls.strength import Use, Used
from disegno.core.errors import KeyMismatch, UnknownKind, WrongFamily
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.weights.identify import identify
from disegno.weights.xs_files import names_of, originals_of, read_xs

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
GOLDEN = Path(__file__).parent.parent / "golden"
Reader = Callable[[str], dict[str, Tensor]]
# float32 sums in another order: diffusers' class with both faults put right differs by 2.3e-6
EPS = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def io(golden: Reader) -> dict[str, Tensor]:
    return golden("controlnet_xs__io")


@pytest.fixture(scope="module")
def path(golden: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as published: {"state_dict": ...}, a torch checkpoint."""
    path = tmp_path_factory.mktemp("xs") / "sd15_encD_canny_53m.ckpt"
    torch.save({"state_dict": golden("controlnet_xs__control")}, path)
    return path


def _eps(path: Path, host: Any, io: dict[str, Tensor], use: Use) -> Tensor:
    controller = controlnet_xs.open(path, host, MEMORY)
    out: list[Tensor] = []
    for row in range(2):
        one = slice(row, row + 1)
        control = Used(controller.prepare(Condition(io["hint"][one], str(row))), use)
        out.append(control(host.call(io["x_noisy"][one], io["timesteps"][one], io["context"][one])).run())
    return torch.cat(out)


def test_hint_and_eps(path: Path, io: dict[str, Tensor], xs_host: Any) -> None:
    controller = controlnet_xs.open(path, xs_host, MEMORY)
    torch.testing.assert_close(controller.net.features(io["hint"]), io["out.hint_embedding"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(_eps(path, xs_host, io, Use()), io["out.eps_scale1"], **EPS)
    torch.testing.assert_close(_eps(path, xs_host, io, Use(0.95)), io["out.eps_scale0.95"], **EPS)
    torch.testing.assert_close(_eps(path, xs_host, io, Use(1.0, layers=(0.0,) * 7)), io["out.eps_nocontrol"], **EPS)


def test_the_card_and_every_form_of_file(
    path: Path, tmp_path: Path, golden: Reader, io: dict[str, Tensor], xs_host: Any
) -> None:
    own = golden("controlnet_xs__control")
    card = identify(path)
    assert (card.kind, card.mechanism) == ("control", "controlnet-xs")
    training = {f"control_model.{key}": tensor.clone() for key, tensor in own.items()}
    save_file(training, tmp_path / "training.safetensors")
    ours = originals_of(read_xs(path).tensors)
    assert {*ours, "scale_list"} == own.keys()
    assert all(torch.equal(tensor, own[key]) for key, tensor in ours.items())
    save_file({key: tensor.clone() for key, tensor in ours.items()}, tmp_path / "ours.safetensors")
    for name in ("training", "ours"):
        found = _eps(tmp_path / f"{name}.safetensors", xs_host, io, Use())
        torch.testing.assert_close(found, io["out.eps_scale1"], **EPS)


def test_diffusers_names_are_ours(golden: Reader) -> None:
    """The converted files' class has as many tensors as the original, of the same shapes, under names that we know."""
    config = json.loads((GOLDEN / "controlnet_xs.json").read_text("utf-8"))["diffusers_controlnetxs_config"]
    adapter = build_empty(lambda: ControlNetXSAdapter(**config)).state_dict()
    ours = {new: tuple(adapter[key].shape) for key, new in names_of(adapter).items()}
    own = golden("controlnet_xs__control")
    assert ours == {new: tuple(own[key].shape) for key, new in names_of(own).items()}


def test_rows_without_it_keep_their_bits(path: Path, io: dict[str, Tensor], xs_host: Any) -> None:
    call = xs_host.call(io["x_noisy"], io["timesteps"], io["context"])
    call = replace(call, rows=tuple(replace(row, positive=i == 0) for i, row in enumerate(call.rows)))
    controller = controlnet_xs.open(path, xs_host, MEMORY)
    control = controller.prepare(Condition(io["hint"][:1], "0"))
    out = Used(control, Use(mode="control"))(call).run()
    torch.testing.assert_close(out[1:], io["out.eps_nocontrol"][1:], **EPS)
    assert (out[0] - io["out.eps_nocontrol"][0]).abs().max() > 0.01


def test_groups_are_the_largest_divisors() -> None:
    assert [groups_of(n) for n in (4, 96, 256, 1296, 1344)] == [4, 32, 32, 27, 32]


@pytest.mark.parametrize(
    ("widths", "width", "heads", "linear", "learns", "millions"),
    [((64, 128, 256, 256), 768, 8, False, False, 52.66), ((4, 8, 16, 16), 1024, (5, 10, 20, 20), True, True, 14.19)],
    ids=["sd15-53m", "sd21-14m"],
)
def test_published_sizes_on_meta_tensors(
    widths: tuple[int, ...], width: int, heads: Any, linear: bool, learns: bool, millions: float
) -> None:
    """The published models' parameters, counted in the original, and their shapes taken by our net."""
    base = {"cross_attention_dim": width, "attention_head_dim": heads, "use_linear_projection": linear}
    unet = build_empty(lambda: UNet2DConditionModel(**base))
    adapter = build_empty(
        lambda: ControlNetXSAdapter(
            block_out_channels=widths,
            base_block_out_channels=(320, 640, 1280, 1280),
            num_attention_heads=1 if learns else 8,
            cross_attention_dim=width,
            learn_time_embedding=learns,
            use_linear_projection=linear,
            max_norm_num_groups=4 if learns else 32,
        )
    ).state_dict()
    shapes = {new: tuple(adapter[key].shape) for key, new in names_of(adapter).items()}
    net = build_empty(lambda: XsNet(shapes, Heads.of(unet.config, (320, 640, 1280, 1280))))
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == shapes
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    ours = {name: shape for name, shape in shapes.items() if not name.startswith("time_embedding.")}
    assert xs_shapes(Sizes.of(unet, widths)) == ours  # what a new one is made of


def test_what_does_not_fit_is_named(path: Path, tmp_path: Path, golden: Reader, xs_host: Any) -> None:
    own = golden("controlnet_xs__control")

    def saved(tensors: dict[str, Tensor]) -> Path:
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "x.safetensors")
        return tmp_path / "x.safetensors"

    wide = {
        k: torch.zeros(t.shape[0], 77) if "attn2.to_" in k and "to_q" not in k and "to_out" not in k else t
        for k, t in own.items()
    }
    with pytest.raises(WrongFamily, match="the width of the text"):
        controlnet_xs.open(saved(wide), xs_host, MEMORY)
    short = {k: t for k, t in own.items() if "enc_zero_convs_in.1" not in k}
    with pytest.raises(KeyMismatch, match=r"to_control\.1"):
        controlnet_xs.open(saved(short), xs_host, MEMORY)
    with pytest.raises(KeyMismatch, match="its middle"):
        controlnet_xs.open(saved({k: t for k, t in own.items() if ".middle_block.2." not in k}), xs_host, MEMORY)
    with pytest.raises(KeyMismatch, match="another variant"):
        controlnet_xs.open(saved({k: t for k, t in own.items() if "dec_zero" not in k}), xs_host, MEMORY)
    with pytest.raises(UnknownKind, match="no ControlNet-XS"):
        read_xs(saved({"conv_in.weight": torch.zeros(1)}))
