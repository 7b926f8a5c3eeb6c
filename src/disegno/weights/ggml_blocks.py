"""ggml's quantised numbers: blocks of 32 or 256 small integers that share a scale, unpacked into plain ones.

Where each number lies in a block are facts of ggml's `ggml-common.h` and `ggml-quants.c` (structs `block_q4_0` ...
`block_iq4_xs` and their `dequantize_row_*`). A number is worked out in float32 and kept as float16: its digits come
from a float16 scale and an integer of at most 8 bits.

    Q4_0, Q5_0, Q8_0    d * (q - 8), d * (q - 16), d * q
    Q4_1, Q5_1          d * q + m
    Q2_K, Q4_K, Q5_K    (d * scale) * q - (dmin * minimum), scales and minima of 16 or 32 numbers
    Q3_K, Q6_K          (d * scale) * q, scales of 16 numbers
    IQ4_NL, IQ4_XS      d * table[q], (d * scale) * table[q]
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

UNPACKED = torch.float16
_AT_ONCE = 1 << 18  # numbers that are worked out at once: they stay in the cache (2 ns each; of 1 << 22, 7 ns)
_AT_ONCE_ELSEWHERE = 1 << 25  # on a GPU, which wants much at once; they take 128 MiB in float32
_HALVES, _QUARTERS, _BITS = (0, 4), (0, 2, 4, 6), tuple(range(8))
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl


@dataclass(frozen=True)
class Blocks:
    """How a tensor's numbers are packed: `num_values` in `num_bytes`, again and again, row by row.

    `values`: blocks (n num_bytes), uint8 -> their numbers (n num_values), float32.
    """

    name: str
    num_values: int
    num_bytes: int
    values: Callable[[Tensor], Tensor] = field(repr=False)

    def bytes_of(self, count: int) -> int:
        """Return how many bytes `count` numbers take, a multiple of `num_values`."""
        return count // self.num_values * self.num_bytes

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return the numbers of packed bytes (uint8, flat) in their order, float16, flat."""
        blocks = packed.view(-1, self.num_bytes)
        made = torch.empty(len(blocks), self.num_values, dtype=UNPACKED, device=packed.device)
        step = max(1, (_AT_ONCE if packed.device.type == "cpu" else _AT_ONCE_ELSEWHERE) // self.num_values)
        for begin in range(0, len(blocks), step):
            made[begin : begin + step] = self.values(blocks[begin : begin + step])
        return made.flatten()


def _half(blocks: Tensor, at: int) -> Tensor:
    """Return the float16 number at a byte of each block, (n 1), float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _shifted(numbers: Tensor, shifts: tuple[int, ...], bits: int) -> Tensor:
    """Return parts of bytes (n g k) as numbers of `bits` bits, (n g len(shifts) k): the lowest shift's first."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=numbers.device)[:, None]
    return numbers[:, :, None, :] >> by & (1 << bits) - 1


def _nibbles(blocks: Tensor, begin: int, end: int, width: int) -> Tensor:
    """Return bytes as numbers of 4 bits, (n 2(end - begin)): of each `width` bytes the low halves, then the high."""
    some = blocks[:, begin:end].reshape(len(blocks), -1, width)
    return _shifted(some, _HALVES, 4).flatten(1)


def _fifth_bits(blocks: Tensor, begin: int) -> Tensor:
    """Return 32 bits as the number 16 or 0, (n 32): the lowest of the first byte first."""
    bits = (
        blocks[:, begin : begin + 4, None] >> torch.tensor(_BITS, dtype=torch.uint8, device=blocks.device) & 1
    )  # n 4 8
    return bits.flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks, 2, 18, 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks, 4, 20, 16) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks, 6, 22, 16) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (q.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks, 8, 24, 16) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * q + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:34].contiguous().view(torch.int8)


def _in_groups(scale: Tensor, q: Tensor, minimum: Tensor | None = None) -> Tensor:
    """Return scale * q - minimum, (n 256), of q (n 256) whose groups have a scale, and a minimum, each (n g)."""
    groups = q.float().reshape(len(q), scale.shape[1], -1)
    made = scale[..., None] * groups
    return (made if minimum is None else made - minimum[..., None]).flatten(1)


def _q2_k(blocks: Tensor) -> Tensor:
    both, q = blocks[:, :16], _shifted(blocks[:, 16:80].reshape(-1, 2, 32), _QUARTERS, 2).flatten(1)
    return _in_groups(_half(blocks, 80) * (both & 15), q, _half(blocks, 82) * (both >> 4))


def _q3_k(blocks: Tensor) -> Tensor:
    low = _shifted(blocks[:, 32:96].reshape(-1, 2, 32), _QUARTERS, 2).flatten(1)
    high = _shifted(blocks[:, :32].reshape(-1, 1, 32), _BITS, 1).flatten(1)
    scales = _nibbles(blocks, 96, 104, 8) | _shifted(blocks[:, 104:108].reshape(-1, 1, 4), _QUARTERS, 2).flatten(1) << 4
    q = low.float() - 4 * (1 - high.float())  # the third bit says that nothing is taken off
    return _in_groups(_half(blocks, 108) * (scales.float() - 32), q)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eight scales and eight minima, 6 bits each, of bytes 4 to 16 of Q4_K and Q5_K, (n 8)."""
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, last & 15 | first >> 6 << 4], 1)
    minima = torch.cat([second & 63, last >> 4 | second >> 6 << 4], 1)
    return scales, minima


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks)
    return _in_groups(_half(blocks, 0) * scales, _nibbles(blocks, 16, 144, 32), _half(blocks, 2) * minima)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks)
    high = _shifted(blocks[:, 16:48].reshape(-1, 1, 32), _BITS, 1).flatten(1) << 4
    q = _nibbles(blocks, 48, 176, 32) | high
    return _in_groups(_half(blocks, 0) * scales, q, _half(blocks, 2) * minima)


def _q6_k(blocks: Tensor) -> Tensor:
    high = _shifted(blocks[:, 128:192].reshape(-1, 2, 32), _QUARTERS, 2).flatten(1) << 4
    q = (_nibbles(blocks, 0, 128, 64) | high).float() - 32
    return _in_groups(_half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8), q)


def _of_table(q: Tensor) -> Tensor:
    return torch.tensor(_IQ4, dtype=torch.float32, device=q.device)[q.long()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _of_table(_nibbles(blocks, 2, 18, 16))


def _iq4_xs(blocks: Tensor) -> Tensor:
    high = _shifted(blocks[:, 2:4].reshape(-1, 2, 1), _QUARTERS, 2).flatten(1)  # two bits for each of eight groups
    low = _shifted(blocks[:, 4:8].reshape(-1, 4, 1), _HALVES, 4).flatten(1)
    scales = (low | high << 4).float() - 32
    return _in_groups(_half(blocks, 0) * scales, _of_table(_nibbles(blocks, 8, 136, 16)))


PACKED = {
    2: Blocks("Q4_0", 32, 18, _q4_0),
    3: Blocks("Q4_1", 32, 20, _q4_1),
    6: Blocks("Q5_0", 32, 22, _q5_0),
    7: Blocks("Q5_1", 32, 24, _q5_1),
    8: Blocks("Q8_0", 32, 34, _q8_0),
    10: Blocks("Q2_K", 256, 84, _q2_k),
    11: Blocks("Q3_K", 256, 110, _q3_k),
    12: Blocks("Q4_K", 256, 144, _q4_k),
    13: Blocks("Q5_K", 256, 176, _q5_k),
    14: Blocks("Q6_K", 256, 210, _q6_k),
    20: Blocks("IQ4_NL", 32, 18, _iq4_nl),
    23: Blocks("IQ4_XS", 256, 136, _iq4_xs),
}
"""ggml's number of a type -> how its numbers are packed."""
PLAIN = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
"""ggml's number of a type -> the dtype that it is."""
OTHERS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""Types that are known by name only: ggml_type in ggml.h."""
