"""No file executes, every sound file loads, every bad file gives one typed error: a sample of a corpus of 287 files."""

import importlib.util
import random
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from disegno.core.errors import DisegnoError, ModelFileError, UnsafeFile
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors
from kit import gguf
from kit.hostile_gguf import bad_gguf

pytestmark = pytest.mark.contract


def _hostile() -> ModuleType:
    path = Path(__file__).parents[1] / "corpus" / "hostile.py"
    spec = importlib.util.spec_from_file_location("hostile", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module
    spec.loader.exec_module(module)
    return module


hostile = _hostile()
CONTROL = """
import sys, torch
for path in sys.argv[1:]:
    try:
        torch.load(path, weights_only=False)
    except BaseException:
        pass
"""


@pytest.fixture(scope="module")
def gadgets(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """Return the checkpoints with payloads by name, and the folder where a payload that runs leaves its mark."""
    folder, marks = tmp_path_factory.mktemp("gadgets"), tmp_path_factory.mktemp("marks")
    return hostile.write_gadgets(folder, marks), marks


def test_no_payload_runs(gadgets: tuple[dict[str, Path], Path]) -> None:
    files, marks = gadgets
    for name, path in files.items():
        with pytest.raises(UnsafeFile, match="Nothing was run"):
            load_file(path)
        assert not list(marks.iterdir()), f"{name} ran"


def test_every_payload_runs_under_an_unrestricted_load(gadgets: tuple[dict[str, Path], Path]) -> None:
    """The positive control: without it the test above would prove nothing."""
    files, marks = gadgets
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CONTROL, *map(str, files.values())],
        check=False,
        capture_output=True,
        timeout=120,
    )
    silent = sorted(set(files) - {path.name for path in marks.iterdir()})
    for path in marks.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    assert not silent


def _refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(ModelFileError) as error:
        load_file(path)
    assert path.name in str(error.value)
    assert time.process_time() - begin < 5


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", hostile.bad_checkpoints())
def test_a_bad_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    _refused(tmp_path / "file.ckpt", hostile.bad_checkpoints()[name])


@pytest.mark.parametrize("name", hostile.bad_safetensors())
def test_a_bad_safetensors_file_is_refused(name: str, tmp_path: Path) -> None:
    _refused(tmp_path / "file.safetensors", hostile.bad_safetensors()[name])


@pytest.mark.parametrize("name", bad_gguf())
def test_a_bad_gguf_file_is_refused(name: str, tmp_path: Path) -> None:
    _refused(tmp_path / "file.gguf", bad_gguf()[name])


def _weights() -> dict[str, torch.Tensor]:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    return {
        "plain": base,
        "view": base[1:3, 2:],
        "transposed": base.T,
        "half": base.half(),
        "bf16": base.bfloat16(),
        "fp8": base.to(torch.float8_e4m3fn),
        "int": torch.arange(77)[None],
        "bool": base > 0,
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 5),
    }


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (True, 4), (False, 2)])
def test_a_torch_checkpoint_loads_bit_by_bit(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "file.ckpt"
    torch.save(_weights(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    loaded = load_file(path)
    assert list(loaded) == list(_weights())
    for name, tensor in _weights().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), tensor.float())  # float8 has no comparison; the cast is exact


def _foreign() -> dict[str, object]:
    """Return what checkpoints of the field hold beside weights."""
    state = OrderedDict(_weights())
    state._metadata = {"": {"version": 1}}
    return {
        "state_dict": state,
        "epoch": np.float64(3),
        "seed": np.int64(7),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "betas": (0.9, 0.999)}],
        "names": {"a", "b"},
        "folder": Path("/somewhere"),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_lightning_checkpoint_loads_and_says_what_it_left(tmp_path: Path, zipped: bool) -> None:
    from disegno.weights.load import open_file

    torch.save(_foreign(), tmp_path / "file.ckpt", _use_new_zipfile_serialization=zipped)
    with open_file(tmp_path / "file.ckpt") as file:
        assert file.keys() == list(_weights())
        assert "epoch: beside the state_dict" in file.ignored


def test_classes_that_are_not_installed_stay_names(tmp_path: Path) -> None:
    """As Stable Diffusion 1.x was published: a Lightning class as a key, an OmegaConf object as a value."""
    callback = b"}(cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n" + hostile.text("x") + b"u"
    config = b"comegaconf.dictconfig\nDictConfig\n)\x81}(" + hostile.text("a") + hostile.number(1) + b"ub"
    table = hostile.table(hostile.text("callbacks"), callback, hostile.text("config"), config,
                          hostile.text("w"), hostile.tensor(device="cuda:7"))  # fmt: skip
    path = tmp_path / "file.ckpt"
    path.write_bytes(hostile.archive(table))
    assert torch.equal(load_file(path)["w"], torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_parameters_and_textual_inversions_load(tmp_path: Path) -> None:
    embedding = nn.ParameterDict({"*": nn.Parameter(torch.ones(2, 768))})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": embedding, "name": "x"}, tmp_path / "file.pt")
    assert load_file(tmp_path / "file.pt")["string_to_param.*"].shape == (2, 768)


def test_mutated_files_load_or_give_a_typed_error(tmp_path: Path) -> None:
    """1,500 damaged copies of sound files: no other exception, none slow."""
    rng = random.Random(5)
    torch.save(_foreign(), tmp_path / "a.ckpt")
    torch.save(_foreign(), tmp_path / "b.ckpt", _use_new_zipfile_serialization=False)
    save_safetensors(tmp_path / "c.safetensors", _weights(), {"a": "b"})
    packed = {"w": gguf.packed(torch.ones(4, 32), gguf.Q8_0), "v": gguf.plain(torch.ones(2, 3))}
    gguf.write(tmp_path / "d.gguf", packed, {"general.architecture": "sd3", "comfy.gguf.orig_shape.w": [8, 4, 4]})
    sound = [path.read_bytes() for path in sorted(tmp_path.iterdir())] + [hostile.archive(hostile.GOOD)]
    for number in range(1500):
        content = bytearray(rng.choice(sound))
        head = min(len(content), 700)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(head if rng.random() < 0.8 else len(content))
            value = rng.choice(
                (b"", bytes([rng.randrange(256)]), b"R", b"\x81", struct.pack("<Q", 1 << 63), b"\xff" * 4)
            )
            content[at : at + rng.choice((0, 1, len(value)))] = value
        path = tmp_path / f"mutant{number % 2}"
        path.write_bytes(content)
        begin = time.process_time()
        try:
            load_file(path)
        except DisegnoError as error:
            assert isinstance(error, ModelFileError)
        assert time.process_time() - begin < 2
