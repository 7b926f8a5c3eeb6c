"""ggml's packed numbers against a reference that works them out one by one, by the format's description."""

import struct
from collections.abc import Callable

import pytest
import torch

from disegno.weights.ggml_blocks import PACKED
from kit import gguf

pytestmark = pytest.mark.unit

Reference = Callable[[bytes], list[float]]
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def _nibble(block: bytes, begin: int, k: int) -> int:
    """The number k of 32: of 16 bytes the low halves are the first 16 numbers."""
    return block[begin + k % 16] >> 4 * (k // 16) & 15


def _bit(block: bytes, begin: int, k: int) -> int:
    return block[begin + k // 8] >> k % 8 & 1


def _q4_0(b: bytes) -> list[float]:
    return [_half(b, 0) * (_nibble(b, 2, k) - 8) for k in range(32)]


def _q4_1(b: bytes) -> list[float]:
    return [_half(b, 0) * _nibble(b, 4, k) + _half(b, 2) for k in range(32)]


def _q5_0(b: bytes) -> list[float]:
    return [_half(b, 0) * (_nibble(b, 6, k) + 16 * _bit(b, 2, k) - 16) for k in range(32)]


def _q5_1(b: bytes) -> list[float]:
    return [_half(b, 0) * (_nibble(b, 8, k) + 16 * _bit(b, 4, k)) + _half(b, 2) for k in range(32)]


def _q8_0(b: bytes) -> list[float]:
    return [_half(b, 0) * q for q in struct.unpack_from("<32b", b, 2)]


def _two_bits(block: bytes, begin: int, k: int) -> int:
    """The number k of 256: four times 32 of the first 32 bytes, from the lowest bits up, then of the other 32."""
    return block[begin + 32 * (k // 128) + k % 32] >> 2 * (k % 128 // 32) & 3


def _q2_k(b: bytes) -> list[float]:
    d, dmin = _half(b, 80), _half(b, 82)
    return [d * (b[k // 16] & 15) * _two_bits(b, 16, k) - dmin * (b[k // 16] >> 4) for k in range(256)]


def _q3_k(b: bytes) -> list[float]:
    made: list[float] = []
    for k in range(256):
        j = k // 16  # the group: of its scale's 6 bits, four and two lie apart
        low = b[96 + j % 8] >> 4 * (j // 8) & 15
        high = b[104 + j % 4] >> 2 * (j // 4) & 3
        is_high = b[k % 32] >> k // 32 & 1
        made.append(_half(b, 108) * (low + 16 * high - 32) * (_two_bits(b, 32, k) - (0 if is_high else 4)))
    return made


def _scale_and_minimum(b: bytes, j: int) -> tuple[int, int]:
    """ggml's get_scale_min_k4, of the 12 bytes from byte 4."""
    q = b[4:16]
    if j < 4:
        return q[j] & 63, q[j + 4] & 63
    return (q[j + 4] & 15) | (q[j - 4] >> 6) << 4, (q[j + 4] >> 4) | (q[j] >> 6) << 4


def _q4_k(b: bytes) -> list[float]:
    made: list[float] = []
    for k in range(256):
        scale, minimum = _scale_and_minimum(b, k // 32)
        q = b[16 + 32 * (k // 64) + k % 32] >> 4 * (k // 32 % 2) & 15
        made.append(_half(b, 0) * scale * q - _half(b, 2) * minimum)
    return made


def _q5_k(b: bytes) -> list[float]:
    made: list[float] = []
    for k in range(256):
        scale, minimum = _scale_and_minimum(b, k // 32)
        q = (b[48 + 32 * (k // 64) + k % 32] >> 4 * (k // 32 % 2) & 15) + 16 * (b[16 + k % 32] >> k // 32 & 1)
        made.append(_half(b, 0) * scale * q - _half(b, 2) * minimum)
    return made


def _q6_k(b: bytes) -> list[float]:
    made: list[float] = []
    for k in range(256):
        half, quarter, rest = k // 128, k % 128 // 32, k % 32
        low = b[64 * half + 32 * (quarter % 2) + rest] >> 4 * (quarter // 2) & 15
        high = b[128 + 32 * half + rest] >> 2 * quarter & 3
        scale = struct.unpack_from("<b", b, 192 + k // 16)[0]
        made.append(_half(b, 208) * scale * (low + 16 * high - 32))
    return made


def _iq4_nl(b: bytes) -> list[float]:
    return [_half(b, 0) * _IQ4[_nibble(b, 2, k)] for k in range(32)]


def _iq4_xs(b: bytes) -> list[float]:
    (high,) = struct.unpack_from("<H", b, 2)
    made: list[float] = []
    for j in range(8):
        scale = (b[4 + j // 2] >> 4 * (j % 2) & 15) + 16 * (high >> 2 * j & 3) - 32
        made += [_half(b, 0) * scale * _IQ4[_nibble(b, 8 + 16 * j, k)] for k in range(32)]
    return made


REFERENCES: dict[str, Reference] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: PACKED[kind].name)
def test_every_block_is_unpacked_as_it_is_described(kind: int) -> None:
    blocks = PACKED[kind]
    assert (blocks.num_values, blocks.num_bytes) == gguf.SIZES[kind]
    stored = gguf.drawn(kind, (24, blocks.num_values), seed=kind, scale=0.01)
    raw = [stored.data[n * blocks.num_bytes : (n + 1) * blocks.num_bytes] for n in range(24)]
    expected = torch.tensor([REFERENCES[blocks.name](one) for one in raw], dtype=torch.float64)
    found = blocks.unpacked(torch.frombuffer(bytearray(stored.data), dtype=torch.uint8))
    # float16's rounding, and float32's of the two terms of a difference
    assert torch.allclose(found.double(), expected.flatten(), rtol=2**-11, atol=2e-6)
    assert len(found.unique()) > 15 and found.dtype == torch.float16


def test_many_blocks_are_unpacked_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.frombuffer(bytearray(gguf.drawn(14, (37, 256), seed=1).data), dtype=torch.uint8)
    whole = PACKED[14].unpacked(raw)
    monkeypatch.setattr("disegno.weights.ggml_blocks._AT_ONCE", 1024)
    assert torch.equal(PACKED[14].unpacked(raw), whole)


@pytest.mark.parametrize(("kind", "steps"), [(gguf.Q8_0, 127), (gguf.Q4_0, 7)])
def test_what_is_packed_comes_back_within_half_a_step(kind: int, steps: int) -> None:
    numbers = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    stored = gguf.packed(numbers, kind)
    found = PACKED[kind].unpacked(torch.frombuffer(bytearray(stored.data), dtype=torch.uint8)).view(8, 64)
    step = numbers.view(-1, 32).abs().amax(1, keepdim=True) / steps
    assert torch.all((found.float().view(-1, 32) - numbers.view(-1, 32)).abs() <= step * 0.51 + 1e-3)
