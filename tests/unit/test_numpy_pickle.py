"""Pickled numpy arrays are read as data: bit for bit, or not at all."""

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disegno.core.errors import CorruptFile, ModelFileError, UnsafeFile
from disegno.weights.numpy_pickle import read_arrays

pytestmark = pytest.mark.unit


def _gadgets() -> dict[str, Callable[[str], object]]:
    path = Path(__file__).parents[1] / "corpus" / "hostile.py"
    spec = importlib.util.spec_from_file_location("hostile", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GADGETS


GADGETS = _gadgets()


def _file(tmp_path: Path, value: Any, protocol: int = 3) -> Path:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back_bit_for_bit(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 2, 7), np.float32)
    turned = np.asfortranarray(rng.standard_normal((5, 7)))
    large = rng.standard_normal(400_000, np.float32)  # longer than a text may be
    table = {"Net": {"Conv": {"kernel": kernel, "bias": turned}}, "half": np.float16([1.5]), "l": large}
    arrays = read_arrays(_file(tmp_path, table, protocol))
    assert list(arrays) == ["Net.Conv.kernel", "Net.Conv.bias", "half", "l"]
    assert np.array_equal(arrays["Net.Conv.kernel"].numpy(), kernel) and np.array_equal(arrays["l"].numpy(), large)
    assert np.array_equal(arrays["Net.Conv.bias"].numpy(), turned.astype(np.float32))
    assert arrays["half"].tolist() == [1.5]


@pytest.mark.parametrize("gadget", sorted(GADGETS))
def test_nothing_in_it_runs(gadget: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with pytest.raises((UnsafeFile, CorruptFile)):
        read_arrays(_file(tmp_path, {"a": GADGETS[gadget](str(mark))}))
    assert not mark.exists()


def _shape(data: bytes) -> bytes:
    return data.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86")


@pytest.mark.parametrize(
    ("value", "spoil"),
    [
        ({"a": np.zeros((2, 3), np.float32)}, _shape),
        ({"a": np.zeros((2, 3), np.float32)}, lambda data: data[:-20]),
        ({"a": np.zeros(3, ">f4")}, bytes),
        ({"a": np.zeros(3, np.int32)}, bytes),
        ({"a": np.array([object()])}, bytes),
        ({"a": 3}, bytes),
        ([np.zeros(3, np.float32)], bytes),
        ({"a": np.full(3, np.nan, np.float32)}, bytes),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(tmp_path: Path, value: Any, spoil: Callable[[bytes], bytes]) -> None:
    file = _file(tmp_path, value)
    data = spoil(file.read_bytes())
    file.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"weights\.ckpt"):
        read_arrays(file)


def test_a_table_that_holds_itself_ends(tmp_path: Path) -> None:
    table: dict[str, Any] = {}
    table |= {"a": table, "b": table}
    with pytest.raises(CorruptFile, match="no table"):
        read_arrays(_file(tmp_path, table))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be opened"):
        read_arrays(tmp_path / "none")
