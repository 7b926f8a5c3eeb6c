"""The memory policy: what is decided, what is built without being drawn, and what is said when tensors do not fit."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from disegno import memory, room
from disegno.core.errors import KeyMismatch, RequestError
from disegno.core.settings import Settings
from disegno.memory import FULL_PRECISION, Memory, Policy, build_empty, check_keys, decide
from disegno.training import ground

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_gets_what_it_is_fast_in(monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(memory, "has_fast_bf16", lambda: fast)
    policy = decide(Settings(device="cpu"))
    assert (policy.device.type, policy.dtype, policy.vae_dtype) == ("cpu", dtype, dtype)
    assert policy.memory_format == (torch.channels_last if fast else torch.contiguous_format)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_the_setting_wins(name: str) -> None:
    policy = decide(Settings(device="cpu", dtype=name))  # pyright: ignore[reportArgumentType]
    assert policy.dtype == memory.DTYPES[name]


@pytest.mark.parametrize("device", ["no such device", "cuda:99"])
def test_a_device_that_is_not_there_is_a_request_error(device: str) -> None:
    with pytest.raises(RequestError, match=r"cannot be used: .* Choose auto"):
        decide(Settings(device=device))


@pytest.mark.parametrize(("own", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_training_is_in_bfloat16_only_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, own: bool, dtype: torch.dtype
) -> None:
    """GPUs of before Ampere imitate it, many times slower than they multiply float32."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return own or including_emulation

    monkeypatch.setattr(ground, "decide", lambda settings: Policy(torch.device("cuda"), torch.float16))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    policy = ground.training_memory(Settings()).policy
    assert (policy.dtype, policy.vae_dtype) == (dtype, dtype)


def _make() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def test_nothing_is_drawn_when_building() -> None:
    state = torch.get_rng_state()
    module = build_empty(lambda: nn.Linear(20_000, 20_000))  # 1.6 GB, seconds to draw
    assert module.weight.device.type == "meta"
    assert torch.equal(torch.get_rng_state(), state)


def test_built_modules_share_the_tensors_given_and_are_frozen() -> None:
    tensors = _make().state_dict()
    module = Memory(FULL_PRECISION).build(_make, tensors, "it")
    assert not module.training
    assert all(not p.requires_grad for p in module.parameters())
    assert module.state_dict()["0.weight"].data_ptr() == tensors["0.weight"].data_ptr()


def test_what_trains_has_memory_of_its_own_so_that_files_need_not_stay_open() -> None:
    tensors = {name: tensor.clone() for name, tensor in _make().state_dict().items()}
    module = Memory(replace(FULL_PRECISION, packs=False)).build(_make, tensors, "it")
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() != tensors[name].data_ptr()
        assert torch.equal(parameter, tensors[name])


def test_placing_casts_and_orders() -> None:
    policy = Policy(torch.device("cpu"), torch.bfloat16, torch.channels_last)
    module = Memory(policy).build(_make, _make().state_dict(), "it")
    weight = module.state_dict()["0.weight"]
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert Memory(policy).place(_make(), torch.float32).state_dict()["0.weight"].dtype == torch.float32


def test_what_does_not_fit_is_listed() -> None:
    tensors = _make().state_dict()
    del tensors["0.bias"]
    tensors |= {"extra": torch.zeros(1), "1.weight": torch.zeros(9)}
    with pytest.raises(KeyMismatch) as raised:
        check_keys(build_empty(_make), tensors, "toy.safetensors")
    message = str(raised.value)
    for part in ("toy.safetensors", "1 missing: 0.bias", "1 unexpected: extra", "1.weight is (9,), expected (8,)"):
        assert part in message


_CHURN = """
import resource, sys, torch
from disegno.memory import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator()
def churn():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
churn()
print(churn())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_allocator_keeps_freed_blocks() -> None:
    """Page faults of 8 blocks of 64 MiB: 16,384 each (32 with huge pages), or none when the block was kept.

    Address randomisation now and then makes one tuned block fault, so the bound is half of what untuned ones cost.
    """
    words = [[sys.executable, "-c", _CHURN, how] for how in ("plain", "tuned")]
    plain, tuned = (int(subprocess.run(w, capture_output=True, text=True, check=True).stdout) for w in words)
    assert plain >= 200 and 2 * tuned <= plain


_IDLE = """
import psutil, torch
from disegno.memory import give_back, tune_allocator
assert tune_allocator()
def mib():
    return psutil.Process().memory_info().rss >> 20
blocks = [torch.empty(16 << 20, dtype=torch.uint8).fill_(1) for _ in range(16)]
last = torch.empty(1 << 20, dtype=torch.uint8).fill_(1)
del blocks
kept = mib()
give_back()
print(kept - mib())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_is_free_is_given_back_when_asked() -> None:
    """16 blocks of 16 MiB were freed below one that is in use."""
    done = subprocess.run([sys.executable, "-c", _IDLE], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 200


def test_what_torch_keeps_of_a_card_is_given_back_and_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    for is_there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda is_there=is_there: is_there)
        memory.give_back()
        assert len(emptied) == is_there
    told = {"mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 30}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    card = torch.device("cuda:0")
    assert (room.free_bytes(card), room.total_bytes(card)) == (140, 1000)


@pytest.mark.parametrize(
    "error, is_full",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (OSError("out of memory"), False),
    ],
)
def test_what_says_that_there_is_no_memory_left(error: Exception, is_full: bool) -> None:
    assert room.is_out_of_memory(error) is is_full
