"""Which module is on which device, in which dtype: decided once, done here. Nothing else moves a module."""

import ctypes
import gc
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from disegno.core.errors import CorruptFile, DisegnoError, KeyMismatch, RequestError
from disegno.core.settings import PackedUse, Settings, T5Use
from disegno.packing import can_pack, pack
from disegno.room import free_bytes
from disegno.weights.finite import require_finite
from disegno.weights.packed_tensor import PackedTensor, plain

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# mallopt's parameters (malloc.h) and what they are set to. A step's tensors of up to this size stay on the heap between
# steps instead of being mapped, faulted in and unmapped again: a step is 1.03-1.06x (512 px),
# 1.16-1.21x (256 px) faster.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_BYTES = (1 << 30, 32 << 20)  # the second where glibc refuses the first: its older limit
_TOP_PAD_BYTES = 64 << 20
_UNPACKED_SHARE = 0.5  # of the memory that is free: as much again is wanted while a net is opened


@dataclass(frozen=True)
class Policy:
    """How tensors are kept: the net in `dtype` and `memory_format`, the VAE in `vae_dtype`, text in float32.

    `packs`: whether frozen nets are laid out for inference. Not where gradients pass through them; then weights are
    also copied out of their files, whose pages would stay in memory beside what was made of them. `t5`: whether Stable
    Diffusion 3's large text encoder is used, and how. `gguf`: whether packed weights stay so, where nets are frozen.
    """

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.contiguous_format
    vae_dtype: torch.dtype = torch.float32
    packs: bool = True
    t5: T5Use = "on"
    gguf: PackedUse = "auto"


FULL_PRECISION = Policy(torch.device("cpu"), torch.float32)


def has_fast_bf16() -> bool:
    """Return whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


def _device(name: str) -> torch.device:
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RequestError(
            f"The device {name!r} cannot be used: {reason}. Choose auto, cpu, cuda, cuda:N or mps."
        ) from error
    return device


def _dtype(device: torch.device) -> torch.dtype:
    """Return what the device computes fastest in. On CUDA float16: as fast as bfloat16, 3 bits more precise."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and has_fast_bf16() else torch.float32


def decide(settings: Settings) -> Policy:
    """Return the policy for this machine. Raises RequestError when the device cannot be used."""
    device = _device(settings.device)
    dtype = _dtype(device) if settings.dtype == "auto" else DTYPES[settings.dtype]
    # oneDNN's and cuDNN's half precision convolutions want channels_last (bf16: a step 1.13-1.18x, the VAE 2.3x faster)
    memory_format = torch.contiguous_format if dtype == torch.float32 else torch.channels_last
    return Policy(device, dtype, memory_format, vae_dtype=dtype, t5=settings.t5, gguf=settings.gguf)


def tune_allocator() -> bool:
    """Return whether glibc now keeps large freed blocks for the next step; elsewhere nothing happens. Call it once."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    kept = any(mallopt(_M_MMAP_THRESHOLD, num_bytes) for num_bytes in _KEEP_BYTES)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES[0]) and mallopt(_M_TOP_PAD, _TOP_PAD_BYTES))


def give_back() -> bool:
    """Return whether glibc gave memory that is free back to the system, which `tune_allocator` lets it keep.

    On CUDA torch gives back what it keeps of the device.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError, TypeError):
        return False


def build_empty(make: Callable[[], Module]) -> Module:
    """Return the module that `make` builds, parameters without memory or values, buffers real: nothing is drawn."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return make()


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def check_keys(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise KeyMismatch, listing what is missing, unexpected or of another shape, unless the tensors fit the module."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    faults = {
        "missing": wanted.keys() - tensors.keys(),
        "unexpected": tensors.keys() - wanted.keys(),
        "of another shape": wrong,
    }
    if any(faults.values()):
        found = "; ".join(f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names)
        raise KeyMismatch(
            f"{what} does not hold the expected tensors. {found}. Use a complete file of this model family."
        )


@dataclass(frozen=True)
class Memory:
    """The policy, carried out. Pass one to everything that opens weights."""

    policy: Policy

    def without_fp16(self) -> "Memory":
        """Return a memory with bfloat16 in place of float16, for nets whose numbers are beyond it."""
        if self.policy.dtype != torch.float16:
            return self
        return Memory(replace(self.policy, dtype=torch.bfloat16))

    def on_cpu(self) -> "Memory":
        """Return a memory on the CPU, in bfloat16 where this one is in half precision."""
        half = self.policy.dtype != torch.float32
        dtype = torch.bfloat16 if half else torch.float32
        return Memory(replace(self.policy, device=torch.device("cpu"), dtype=dtype))

    def place(self, module: Module, dtype: torch.dtype | None = None) -> Module:
        """Return the module where the policy wants it, in eval mode. `dtype`: unset, the policy's."""
        policy = self.policy
        # nn.Module's own `to`: diffusers' warns about layers that must stay in float32, of which these models have none
        nn.Module.to(  # pyright: ignore[reportCallIssue]
            module, device=policy.device, dtype=dtype or policy.dtype, memory_format=policy.memory_format
        )
        return module.eval()

    def pack(self, net: Module, linears: bool = True) -> Module:
        """Return the frozen net, its weights laid out once for the kernels that this policy runs: same bits, faster."""
        policy = self.policy
        if policy.packs and policy.device.type == "cpu" and policy.dtype == torch.bfloat16 and can_pack():
            log.info("%s: %d layers packed", type(net).__name__, pack(net, linears))
        return net

    def build(
        self, make: Callable[[], Module], tensors: Mapping[str, Tensor], what: str, dtype: torch.dtype | None = None
    ) -> Module:
        """Return the module that `make` builds, with these weights, frozen and placed.

        Raises KeyMismatch about `what`, and CorruptFile where a weight is NaN or infinite, or the net cannot be built.
        """
        module = _built(make, what)
        check_keys(module, tensors, what)
        own = dtype or self.policy.dtype
        stay = self._staying(module, tensors, own)
        tensors = {name: tensor if name in stay else plain(tensor, own) for name, tensor in tensors.items()}
        require_finite(what, tensors)
        module.load_state_dict(dict(tensors), assign=True)
        self.place(module, dtype).requires_grad_(False)
        if not self.policy.packs:
            _copy_out(module, tensors)
        return module

    def _staying(self, module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> set[str]:
        """Return which of the packed tensors stay so in memory: weights that a layer multiplies by, all or none."""
        packed = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, PackedTensor)}
        if not packed or not self.policy.packs or self.policy.gguf == "unpacked":
            return set()
        num_bytes = sum(tensor.numel() for tensor in packed.values()) * dtype.itemsize
        if self.policy.gguf == "auto":
            free = free_bytes(self.policy.device)
            if free is None or num_bytes <= free * _UNPACKED_SHARE:
                return set()
        multiplying = {
            f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
        }
        stay = packed.keys() & multiplying
        kept, unpacked = sum(packed[name].packed_bytes for name in stay), sum(packed[name].numel() for name in stay)
        mib = 2**20
        log.info("%d weights stay packed: %.0f MiB, not %.0f", len(stay), kept / mib, unpacked * dtype.itemsize / mib)
        return stay


def _built(make: Callable[[], Module], what: str) -> Module:
    """Return the module that `make` builds, empty. Raises CorruptFile where its sizes are told wrongly."""
    try:
        return build_empty(make)
    except DisegnoError:
        raise
    except Exception as error:  # other packages' classes raise whatever they meet
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise CorruptFile(f"{what} cannot be built as its file describes it ({said}). Fetch it again.") from error


def _copy_out(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the module's parameters memory of their own where they still have the given tensors'."""
    for name, parameter in module.named_parameters():
        if parameter.data_ptr() == tensors[name].data_ptr():
            parameter.data = parameter.data.clone()
