"""The program as a person uses it: the command line in a process of its own, on a miniature of the real classes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from disegno.backbones import miniature
from disegno.cli.main import main

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    return folder


def disegno(models: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DISEGNO_MODEL_DIRS": str(models), "DISEGNO_CACHE_DIR": str(models / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "disegno.cli.main", *words], capture_output=True, text=True, env=environment
    )


SMALL = ("--model", "mini", "--size", "64x64", "--steps", "2")


def test_a_picture_is_made_and_made_again_bit_for_bit_elsewhere(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, and in this one."""
    first = disegno(models, "generate", "a cat", *SMALL, "--batch", "2", "-o", str(tmp_path / "a.png"), "--json")
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    assert [Path(path).name for path in said["images"]] == ["a-1.png", "a-2.png"]
    assert said["seeds"] == [said["request"]["seed"], said["request"]["seed"] + 1]
    assert Path(said["sheet"]) == tmp_path / "a.png"
    words = ["generate", "--again", said["images"][1], "-o", str(tmp_path / "b.png")]
    second = _in_process(models, monkeypatch, words)
    assert second.exit_code == 0, second.output
    assert _pixels(tmp_path / "b.png") == _pixels(tmp_path / "a-2.png")
    assert "may differ" not in second.output
    assert f"{tmp_path / 'b.png'}  (seed {said['seeds'][1]})" in second.output  # its own, not the first one's
    again = _in_process(models, monkeypatch, [*words, "--json"])
    assert json.loads(again.stdout)["seeds"] == said["seeds"][1:]


def test_other_formats_carry_a1111s_text_and_are_made_again_from_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.webp", tmp_path / "b.png"
    done = _in_process(models, monkeypatch, ["generate", "a cat", *SMALL, "--seed", "3", "-o", str(first)])
    assert done.exit_code == 0, done.output
    done = _in_process(models, monkeypatch, ["generate", "--again", str(first), "-o", str(second)])
    assert done.exit_code == 0 and "differ" not in done.output, done.output
    with Image.open(first) as other, Image.open(second) as png:
        text = png.info["parameters"]
        assert text == other.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")
    assert re.fullmatch(
        r"a cat\nSteps: 2, Sampler: DPM\+\+ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 3, Size: 64x64, "
        r"Model hash: [0-9a-f]{10}, Model: mini, RNG: CPU, Version: Disegno \S+",
        text,
    )


def test_a_preview_shows_what_is_being_drawn(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = tmp_path / "now.png", tmp_path / "a.png"
    words = ["generate", "a cat", *SMALL, "--batch", "2", "--preview", str(shown), "-o", str(out)]
    done = _in_process(models, monkeypatch, words)
    assert done.exit_code == 0, done.output
    with Image.open(shown) as picture:
        assert picture.size == (128, 64)  # both, side by side


def test_what_ends_a_sheet_leaves_the_pictures_that_are_drawn(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    axis = ["--x", "sampler=Euler,Eulr"]
    for _ in range(2):
        assert _in_process(models, monkeypatch, ["generate", "a cat", *SMALL, *axis]).exit_code == 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["a-cat-plot-1-1-1.png", "a-cat-plot-2-1-1-1.png"]


def test_loops_are_pictures_in_a_row_and_each_is_made_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a cat", *SMALL, "--from", str(CAR), "--seed", "3", "--denoise", "0.9", "--loops", "3"]
    done = _in_process(models, monkeypatch, [*words, "--loop-denoise", "0.5", "-o", "a.png", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (said["images"], said["sheet"], said["seeds"]) == (["a-1.png", "a-2.png", "a-3.png"], "a.png", [3, 4, 5])
    with Image.open("a.png") as row, Image.open("a-3.png") as last:
        assert row.size[0] > 3 * 64 - 1 and "Denoising strength: 0.5, " in last.info["parameters"]
    assert _in_process(models, monkeypatch, ["generate", "--again", "a-3.png", "-o", "b.png"]).exit_code == 0
    assert _pixels(Path("b.png")) == _pixels(Path("a-3.png"))
    for wrong, text in (
        (["generate", "a cat", *SMALL, "--loops", "2"], "give one (--from)"),
        ([*words, "--x", "seed=1,2"], "leave out one of the two"),
        ([*words[:-2], "--loop-curve", "lazy"], "give --loops N"),
    ):
        done = _in_process(models, monkeypatch, wrong)
        assert done.exit_code == 2 and text in done.output, done.output


def test_a_folder_that_is_there_may_have_a_dot_in_its_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "a.b").mkdir()
    words = ["generate", "a cat", *SMALL, "--batch", "2", "--seed", "1", "-o", str(folder)]
    assert _in_process(models, monkeypatch, words).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a-cat-1-sheet.png", "a-cat-1.png", "a-cat-2.png"]


CAR = Path(__file__).parents[2] / "src/disegno/data/diorama/examples/car.png"
MISTAKES = {
    "no prompt": (["generate"], 2, "There is nothing to draw"),
    "no such model": (["generate", "x", "--model", "min"], 2, "mini"),
    "no such file": (["generate", "x", "--model", "a/b.safetensors"], 2, "model folders"),
    "no such sampler": (["generate", "x", *SMALL, "--sampler", "eulr"], 2, "Euler"),
    "no such schedule": (["generate", "x", *SMALL, "--schedule", "karas"], 2, "karras"),
    "no such control": (["generate", "x", *SMALL, "--control", f"cany={CAR}"], 2, "There is no control named 'cany'"),
    "a model as a control": (["generate", "x", *SMALL, "--control", f"mini={CAR}"], 2, "model"),
    "a control without a picture": (["generate", "x", *SMALL, "--control", "canny"], 2, "NAME=IMAGE"),
    "a bad size": (["generate", "x", "--size", "65x64"], 2, "multiple of 8"),
    "no such annotator": (["annotate", "cany", "x.png"], 2, "canny"),
    "no such ending": (["generate", "x", *SMALL, "-o", "a.bmp"], 2, ".webp"),
    "no such picture": (["annotate", "canny", "nowhere.png"], 2, "nowhere.png"),
    "no quotes": (["generate", "a", "red", "car"], 2, "quotes"),
    "a folder that is a file": (["generate", "x", "-o", f"{__file__}/a.png"], 4, "cannot be a folder"),
    "a preview that is no picture": (["generate", "x", "--preview", "now"], 2, ".webp"),
    "a name that is too long": (["generate", "x", "-o", f"{'a' * 300}.png"], 2, "Choose another name"),
    "an evaluation to nowhere": (["evaluate", "x", "--data", "x", "-o", f"{__file__}/a"], 4, "cannot be a folder"),
    "no style at all": (["generate", "x", *SMALL, "--style", "Noir"], 2, "DISEGNO_PROMPT_DIRS"),
    "no LoRA at all": (["generate", "x", *SMALL, "--lora", "ink"], 2, "DISEGNO_MODEL_DIRS"),
    "no such weights": (["models", "show", "nowhere.safetensors"], 2, "nowhere.safetensors"),
}


def _pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def _in_process(models: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Result:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(models))
    monkeypatch.setenv("DISEGNO_PROMPT_DIRS", str(models))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(models / "cache"))
    return CliRunner().invoke(main, words)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_clear_line(name: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, code, said = MISTAKES[name]
    done = _in_process(models, monkeypatch, words)
    assert done.exit_code == code, done.output
    assert said in done.output and "Traceback" not in done.output


def test_a_broken_model_file_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models / "broken.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json")
    done = _in_process(models, monkeypatch, ["generate", "x", "--model", "broken"])
    path.unlink()
    assert done.exit_code == 3 and "broken.safetensors" in done.output


def _hear_ctrl_c() -> None:
    """Undo what a shell does to what it starts in the background: Ctrl-C is ignored there, also by children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("package", "words"),
    [("click", ["--help"]), ("torch", ["generate", "a cat"]), ("cv2", ["annotate", "canny", "photo.jpg"])],
)
def test_ctrl_c_ends_it_quietly_while_it_is_still_being_opened(
    package: str, words: list[str], models: Path, tmp_path: Path
) -> None:
    """A package that presses Ctrl-C while it is imported stands in the place of the real one."""
    (tmp_path / package).mkdir()
    press = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / package / "__init__.py").write_text(press)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.jpg")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "disegno", *words],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, timeout=50,
        preexec_fn=_hear_ctrl_c,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
