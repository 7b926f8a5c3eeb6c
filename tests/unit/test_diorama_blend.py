"""The mean of checkpoints."""

from pathlib import Path

import pytest
import torch
from recipes.diorama.blend import blended, main
from safetensors.torch import load_file, save_file

from disegno.weights.quantised import quantise_rows

pytestmark = pytest.mark.unit


def _written(path: Path, value: float, dtype: torch.dtype = torch.float16, **more: torch.Tensor) -> Path:
    save_file({"a": torch.full((2, 3), value, dtype=dtype), "b": torch.tensor([value])} | more, path)
    return path


def test_the_mean_has_each_files_share_and_the_first_ones_dtype(tmp_path: Path) -> None:
    old, new = _written(tmp_path / "old.safetensors", 1.0), _written(tmp_path / "new.safetensors", 2.0, torch.float32)
    main([str(tmp_path / "mean.safetensors"), f"{old}=0.25", f"{new}=0.75"])
    mean = load_file(tmp_path / "mean.safetensors")
    assert mean.keys() == {"a", "b"} and mean["a"].dtype == torch.float16
    assert (mean["a"] == 1.75).all() and mean["b"].item() == 1.75


def test_a_file_alone_comes_back(tmp_path: Path) -> None:
    own = _written(tmp_path / "own.safetensors", 0.1)
    assert all(torch.equal(tensor, load_file(own)[name]) for name, tensor in blended({own: 1.0}).items())


def test_a_net_as_it_is_shipped_is_mixed_with_one_that_learned_on(tmp_path: Path) -> None:
    """Rows of int8 are numbers first."""
    old, new = {"w": torch.linspace(-2, 2, 8192).view(32, 256)}, {"w": torch.full((32, 256), 3.0)}
    save_file(quantise_rows(old), tmp_path / "old.safetensors")
    save_file(new, tmp_path / "new.safetensors")
    mean = blended({tmp_path / "old.safetensors": 0.5, tmp_path / "new.safetensors": 0.5})
    assert mean.keys() == {"w"} and mean["w"].dtype == torch.float32
    assert torch.allclose(mean["w"], (old["w"] + new["w"]) / 2, atol=0.005)


def test_other_nets_and_weights_are_refused(tmp_path: Path) -> None:
    one = _written(tmp_path / "one.safetensors", 1.0)
    other = _written(tmp_path / "other.safetensors", 1.0, c=torch.zeros(1))
    with pytest.raises(ValueError, match="other tensors"):
        blended({one: 0.5, other: 0.5})
    with pytest.raises(ValueError, match=r"sum to 1\.5"):
        blended({one: 1.0, other: 0.5})
