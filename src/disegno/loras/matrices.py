"""What a LoRA's matrices make of a weight: W + strength * dW. Float32; W: (out in) or (out in kh kw).

LoRA    dW = a/r up down                                     Hu et al. 2021; over a kernel: LoCon, with a core: Tucker
LoHa    dW = a/r (w1_a w1_b) * (w2_a w2_b)                   Hyeon-Woo et al. 2022 (FedPara), elementwise
LoKr    dW = a/r w1 (x) w2                                   Yeh et al. 2023 (LyCORIS), Kronecker
GLoRA   dW = a/r (W a1 a2 + b1 b2)                           Chavan et al. 2023
(IA)3   dW = W * w, w of each output or each input           Liu et al. 2022
OFT     dW = (R - 1) W: see `rotations.py`
full    dW itself; of a norm, too
DoRA    of any of them: m (W + dW) / |W + dW| - W            Liu et al. 2024, by row or by column
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from disegno.core.errors import KeyMismatch
from disegno.loras.rotations import rotated

Matrices = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scale:
    """What a file says of its scale where it has no alpha beside its matrices: a / r, or a / sqrt(r) (rsLoRA).

    `rank`: r, of matrices that do not show it.
    """

    alpha: float | None = None
    by_root: bool = False
    rank: int | None = None

    def of(self, matrices: Matrices, rank: int | None) -> float:
        """Return what dW is multiplied by; `rank`: of the matrices, None where they do not show it."""
        if "alpha" in matrices:  # LyCORIS parity: of matrices without a rank it means nothing
            return float(matrices["alpha"]) / rank if rank else 1.0
        rank = rank or self.rank
        if self.alpha is None or not rank:
            return 1.0
        return self.alpha / (rank**0.5 if self.by_root else rank)


def _with_core(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the weight of a Tucker decomposition, (o i kh kw). `core`: (r s kh kw); `a`: (r o); `b`: (s i)."""
    return torch.einsum("rshw,ro,si->oihw", core, a, b)


def _lora(m: Matrices, weight: Tensor, scale: Scale, limit: int | None) -> Tensor:
    down, up = m["lora_down"], m["lora_up"]
    factor = scale.of(m, len(down))  # of the whole rank, whatever the limit. A1111 parity: dyn
    down, up = down[:limit], up[:, :limit]
    if "lora_mid" in m:
        core = m["lora_mid"][:limit, :limit]
        return factor * _with_core(core, up.flatten(1).T, down.flatten(1))
    made = up.flatten(1) @ down.flatten(1)
    return factor * made.reshape(len(up), *down.shape[1:])


def _loha(m: Matrices, weight: Tensor, scale: Scale, limit: int | None) -> Tensor:
    a1, b1, a2, b2 = (m[f"hada_{name}"].flatten(1) for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    factor = scale.of(m, len(b1))
    if "hada_t1" in m:
        return factor * _with_core(m["hada_t1"], a1, b1) * _with_core(m["hada_t2"], a2, b2)
    return factor * (a1 @ b1) * (a2 @ b2)


def _lokr(m: Matrices, weight: Tensor, scale: Scale, limit: int | None) -> Tensor:
    w1 = m["lokr_w1"] if "lokr_w1" in m else m["lokr_w1_a"] @ m["lokr_w1_b"]
    if "lokr_w2" in m:
        w2 = m["lokr_w2"]
    elif "lokr_t2" in m:
        w2 = _with_core(m["lokr_t2"], m["lokr_w2_a"], m["lokr_w2_b"])
    else:
        a, b = m["lokr_w2_a"], m["lokr_w2_b"]
        w2 = (a @ b.flatten(1)).reshape(len(a), *b.shape[1:])
    ranks = [len(m[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in m]
    w1 = w1.reshape(*w1.shape, *[1] * (w2.ndim - w1.ndim))
    return scale.of(m, ranks[-1] if ranks else None) * torch.kron(w1, w2.contiguous())  # its views want that


def _full(m: Matrices, weight: Tensor, scale: Scale, limit: int | None) -> Tensor:
    return m["diff"]


def _glora(m: Matrices, weight: Tensor, scale: Scale, limit: int | None) -> Tensor:
    a1, a2, b1, b2 = m["glora_a1"], m["glora_a2"], m["glora_b1"], m["glora_b2"]
    if len(b1) != len(weight):  # older files number them the other way round
        a1, a2, b1, b2 = a2, a1, b2, b1
    inner = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    own = b1.flatten(1) @ b2.flatten(1)
    return scale.of(m, b1.shape[1]) * (inner + own.reshape(weight.shape))


def _ia3(m: Matrices, weight: Tensor, scale: Scale, limit: int | None) -> Tensor:
    factors, others = m["weight"].flatten(), [1] * (weight.ndim - 2)
    return weight * (factors.reshape(1, -1, *others) if m["on_input"] else factors.reshape(-1, 1, *others))


def _oft(m: Matrices, weight: Tensor, scale: Scale, limit: int | None) -> Tensor:
    bound = float(m["alpha"]) * len(weight) if "alpha" in m else 0.0
    made = rotated(weight, m["oft_blocks"], bound)
    return (made * m["rescale"].reshape(-1, *[1] * (weight.ndim - 1)) if "rescale" in m else made) - weight


_KINDS: dict[str, Callable[[Matrices, Tensor, Scale, int | None], Tensor]] = {
    "lora_down": _lora,
    "hada_w1_a": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
    "glora_a1": _glora,
    "on_input": _ia3,
    "oft_blocks": _oft,
    "diff": _full,
}
NEEDED = tuple(_KINDS)  # one of these makes a module's matrices a change of its weight


def difference(weight: Tensor, matrices: Matrices, scale: Scale, limit: int | None = None) -> Tensor:
    """Return dW at strength 1, of the weight's shape, float32. `limit`: the directions that are used (LoRA only).

    Raises KeyMismatch where matrices are missing or do not fit the weight.
    """
    kind = next(kind for kind in _KINDS if kind in matrices)
    m = {name: matrix.to(weight.device, torch.float32) for name, matrix in matrices.items()}
    magnitude = m.get("magnitude", m.get("dora_scale"))
    by_row = "magnitude" in m or (magnitude is not None and magnitude.shape[:1] == weight.shape[:1])
    try:
        made = _KINDS[kind](m, weight.float(), scale, limit)
    except KeyError as error:
        raise KeyMismatch(f"it lacks the matrix {error}") from error
    except (RuntimeError, IndexError, TypeError):  # matrices that cannot be multiplied, or have too few sides
        made = torch.empty(0)
    axis = 0 if by_row or weight.ndim == 1 else 1
    if (
        made.numel() != weight.numel()
        or made.shape[:1] != weight.shape[:1]
        or not _has_length(magnitude, weight.shape[axis])
    ):
        shapes = ", ".join(f"{name} {tuple(matrix.shape)}" for name, matrix in matrices.items())
        raise KeyMismatch(f"{shapes} do not fit a weight of {tuple(weight.shape)}")
    made = made.reshape(weight.shape)
    return made if magnitude is None else _decomposed(weight.float(), made, magnitude, axis)


def _has_length(magnitude: Tensor | None, length: int) -> bool:
    return magnitude is None or magnitude.numel() == length


def _decomposed(weight: Tensor, made: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """Return dW with the magnitudes of DoRA, along an axis of the weight.

    peft's magnitudes are of rows (outputs, axis 0); LyCORIS's of columns (inputs), or of rows: their shape says which.
    """
    target = weight + made
    others = [other for other in range(weight.ndim) if other != axis]
    norm = torch.linalg.vector_norm(target, dim=others, keepdim=True)
    return target * (magnitude.reshape(norm.shape) / norm) - weight
