"""Settings: defaults, then the file, then the environment, then what the caller says."""

from pathlib import Path

import pytest

from disegno.core.errors import RequestError
from disegno.core.settings import load_settings

pytestmark = pytest.mark.unit


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = tmp_path / "disegno.toml"
    toml.write_text('threads = 3\ndevice = "cpu"\nmodel_dirs = ["~/models", "/b"]\n')
    monkeypatch.setenv("DISEGNO_THREADS", "5")
    settings = load_settings(toml, dtype="fp32", device=None)
    assert (settings.threads, settings.device, settings.dtype) == (5, "cpu", "fp32")
    assert settings.model_dirs == (Path("~/models").expanduser(), Path("/b"))


def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    toml = tmp_path / "disegno.toml"
    toml.write_text("thread = 3\n")
    with pytest.raises(RequestError, match="thread"):
        load_settings(toml)
    for broken in (b"device = auto", b"\xff", b'clip = "~nobody-at-all/x"'):
        toml.write_bytes(broken)
        with pytest.raises(RequestError, match=r"as TOML|could not be read"):
            load_settings(toml)


def test_a_variable_that_is_misspelt_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("DISEGNO_AUTH", "DISEGNO_API_KEY", "DISEGNO_SCREENSHOTS"):  # not of these settings
        monkeypatch.setenv(other, "x")
    load_settings(tmp_path / "none.toml")
    monkeypatch.setenv("DISEGNO_MODEL_DIR", "/models")
    with pytest.raises(RequestError, match="DISEGNO_MODEL_DIR in the environment is no setting; DISEGNO_MODEL_DIRS is"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("bad", [{"dtype": "fp8"}, {"threads": "many"}, {"threads": -1}])
def test_bad_values_are_said(bad: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        load_settings(tmp_path / "none.toml", **bad)
