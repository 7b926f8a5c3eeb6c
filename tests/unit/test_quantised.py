"""Row-wise int8: what goes in comes back within half a step of its row."""

import pytest
import torch

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.quantised import INT8_PEAK, dequantise_rows, quantise_rows
from disegno.weights.scaled import unscaled

pytestmark = pytest.mark.unit


def test_matrix_comes_back_within_half_a_step() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    stored = quantise_rows({"a.weight": weight})
    assert stored["a.weight"].dtype == torch.int8
    assert stored["a.weight.scale"].dtype == torch.float16
    step = weight.abs().amax(dim=1, keepdim=True) / INT8_PEAK
    error = (dequantise_rows(stored)["a.weight"] - weight).abs()
    assert torch.all(error <= step * 0.57)  # half a step, and float16's rounding of the scale at 127 steps


def test_convolution_has_one_scale_per_output() -> None:
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    stored = quantise_rows({"conv.weight": weight})
    assert stored["conv.weight.scale"].shape == (32,)
    assert dequantise_rows(stored)["conv.weight"].shape == weight.shape


def test_small_and_flat_tensors_stay_half_floats() -> None:
    stored = quantise_rows({"bias": torch.ones(8192), "small.weight": torch.ones(8, 8), "ids": torch.arange(3)})
    assert {key: tensor.dtype for key, tensor in stored.items()} == {
        "bias": torch.float16,
        "small.weight": torch.float16,
        "ids": torch.int64,
    }


def test_row_of_zeros_stays_zero() -> None:
    weight = torch.zeros(64, 64)
    assert torch.equal(dequantise_rows(quantise_rows({"w": weight}))["w"], weight)


def test_scale_without_its_tensor_is_an_error() -> None:
    with pytest.raises(KeyMismatch, match="no tensor w"):
        dequantise_rows({"w.scale": torch.ones(4)})
    with pytest.raises(KeyMismatch, match="not a number for each row of w"):
        dequantise_rows({"w": torch.ones(3, 8), "w.scale": torch.ones(4)})


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5], [2.0]])])
def test_comfyuis_scales_are_multiplied_by(name: str, scale: torch.Tensor) -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    stored = {"a.weight": weight.to(torch.float8_e4m3fn), f"a.{name}": scale, "a.bias": torch.ones(2).half()}
    made = unscaled(stored | {"a.scale_input": torch.ones(()), "scaled_fp8": torch.zeros(0)})
    assert made.keys() == {"a.weight", "a.bias"} and made["a.weight"].dtype == torch.bfloat16
    assert torch.equal(made["a.weight"].float(), weight * scale) and made["a.bias"].dtype == torch.float16


def test_scales_of_blocks_are_refused_in_words() -> None:
    """NVFP4's: two numbers a byte, a scale for every sixteen."""
    stored = {"a.weight": torch.ones(4, 32, dtype=torch.uint8), "a.weight_scale": torch.ones(4, 4)}
    with pytest.raises(UnknownKind, match=r"a.weight \(4, 32\) has scales \(4, 4\)"):
        unscaled(stored)


def test_what_has_no_scales_stays_as_it_is() -> None:
    plain = {"a.weight": torch.ones(2, 2), "logit_scale": torch.ones(())}
    assert unscaled(plain) == plain
