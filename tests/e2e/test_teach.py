"""`disegno teach` as a person uses it: pairs, a training that is interrupted and goes on, a control that draws."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from disegno.backbones import miniature
from disegno.cli.main import main
from disegno.training import teach as teaching
from disegno.training.base import TeachResult
from disegno.training.miniature import Discs, write_base
from disegno.weights.load import open_file

pytestmark = pytest.mark.e2e

STEPS = ("--steps", "4", "--rank", "4", "--width", "64", "--height", "64", "--validate-every", "2", "--save-every", "2")


def write_pairs(folder: Path, num: int = 24) -> Path:
    """Return `folder`, now ControlNet's form of a few discs."""
    discs, lines = Discs(num), list[str]()
    for part in ("source", "target"):
        (folder / part).mkdir(parents=True)
    for index in range(num):
        sample, name = discs.read(index), f"{discs.key(index)}.png"
        Image.fromarray(sample.condition).save(folder / "source" / name)
        Image.fromarray(sample.target).save(folder / "target" / name)
        said = {"source": f"source/{name}", "target": f"target/{name}", "prompt": sample.caption}
        lines.append(json.dumps(said))
    (folder / "prompt.json").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a model, a Base ControlNet and pairs, in which commands run."""
    place = tmp_path_factory.mktemp("teach")
    miniature.write_sd1_checkpoint(place / "models" / "mini.safetensors")
    write_base(place / "models" / "minibase.safetensors")
    write_pairs(place / "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DISEGNO_MODEL_DIRS", str(place / "models"))
        patch.setenv("DISEGNO_CACHE_DIR", str(place / "cache"))
        yield place


def disegno(*words: str) -> Result:
    done = CliRunner().invoke(main, words)
    assert "Traceback" not in done.output
    return done


def taught(name: str, *more: str) -> Result:
    return disegno("teach", name, "--data", "pairs", "--model", "mini", *STEPS, *more)


@pytest.fixture(scope="module")
def discs(place: Path) -> Result:
    return taught("discs")


def test_a_control_is_taught_and_draws(place: Path, discs: Result) -> None:
    assert discs.exit_code == 0, discs.output
    assert "disegno generate" in discs.output and "--control discs=" in discs.output
    with open_file(place / "models/controls/discs.safetensors") as file:
        assert file.metadata["disegno.mechanism"] == "ctrlora" and file.metadata["disegno.steps"] == "4"
        assert int(file.metadata["disegno.training_pairs"]) == 22
        assert str(place) not in json.dumps(dict(file.metadata))
    words = ("generate", "a red disc", "--model", "mini", "--size", "64x64", "--steps", "2", "-o", "out.png")
    drawn = disegno(*words, "--control", f"discs={place / 'pairs/source/0000.png'}")
    assert drawn.exit_code == 0, drawn.output
    with Image.open(place / "out.png") as picture:
        assert picture.size == (64, 64)


def drawn_with(place: Path, control: Path, out: str) -> bytes:
    """Return the pixels that a control draws."""
    words = ("generate", "a red disc", "--model", "mini", "--size", "64x64", "--steps", "2", "--seed", "1", "-o", out)
    made = disegno(*words, "--control", f"{control}={place / 'pairs/source/0000.png'}")
    assert made.exit_code == 0, made.output
    with Image.open(place / out) as picture:
        return picture.tobytes()


EXPORTED = {"ctrlora": ("zero_convs.0.0.weight", ".lora_layer.up.weight"), "controlnet": ("input_hint_block.0.weight",)}


@pytest.mark.parametrize("recipe", EXPORTED)
def test_what_was_taught_is_exported_for_the_original_programs(place: Path, discs: Result, recipe: str) -> None:
    if recipe == "controlnet":
        plain = taught("plain", "--recipe", "controlnet", "--rate", "0.01", "--validate-every", "0", "--json")
        assert json.loads(plain.output.splitlines()[-1])["warnings"] == [
            "rank has no effect with the recipe controlnet."
        ]
    ours = place / "models/controls" / {"ctrlora": "discs.safetensors", "controlnet": "plain.safetensors"}[recipe]
    pictures = {drawn_with(place, ours, "ours.png")}
    for suffix in ("ckpt", "safetensors"):
        out = place / f"{recipe}_exported.{suffix}"
        assert disegno("models", "convert", str(ours), str(out), "--to", "ldm").exit_code == 0
        with open_file(out) as file, open_file(ours) as own:
            keys = file.keys()
            assert len(keys) == len(own.keys()) and all(key.startswith("control_model.") for key in keys)
            assert all(any(key.endswith(mark) for key in keys) for mark in EXPORTED[recipe])
        pictures.add(drawn_with(place, out, f"{suffix}.png"))
    assert len(pictures) == 1
    with_torch = torch.load(place / f"{recipe}_exported.ckpt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in with_torch.values())


def test_it_can_be_watched(place: Path, discs: Result) -> None:
    assert (place / "runs/discs/report.html").is_file()
    assert list((place / "runs/discs/tensorboard").iterdir())
    assert {f"step-00000{step}.png" for step in (0, 2, 4)} <= {p.name for p in (place / "runs/discs/looks").iterdir()}
    assert discs.output.count("(held-out loss") == 3


def test_the_same_command_again_teaches_nothing_anew(place: Path, discs: Result) -> None:
    before = (place / "models/controls/discs.safetensors").read_bytes()
    again = taught("discs", "--json")
    assert again.exit_code == 0, again.output
    said = json.loads(again.output.splitlines()[-1])
    assert said["why"] == "steps" and said["step"] == 4
    assert (place / "models/controls/discs.safetensors").read_bytes() == before


def test_what_another_training_of_this_name_has_left_meanwhile_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = place / "models/controls/twin.safetensors"
    own = teaching.teach

    def beside_another(*given: Any, **named: Any) -> Iterator[object]:
        for event in own(*given, **named):
            if isinstance(event, TeachResult):
                home.parent.mkdir(exist_ok=True)
                home.write_bytes(b"the other's")
            yield event

    monkeypatch.setattr(teaching, "teach", beside_another)
    done = taught("twin", "--validate-every", "0")
    assert done.exit_code == 2 and "--replace" in done.output and "runs/twin/twin.safetensors" in done.output
    assert home.read_bytes() == b"the other's"
    done = taught("twin", "--validate-every", "0", "--replace")
    assert done.exit_code == 0 and home.read_bytes() == (place / "runs/twin/twin.safetensors").read_bytes()


def test_it_says_what_it_takes_and_teaches_nothing(place: Path, discs: Result) -> None:
    assert "It will take about" in discs.output.replace("\n", " ")
    assert "It will take about" in (place / "runs/discs/report.html").read_text("utf-8")
    asked = taught("thinking", "--estimate")
    assert asked.exit_code == 0, asked.output
    assert "computed, not measured" in asked.output and "| as asked |" in asked.output
    assert "It will take about" in asked.output and "4 steps" in asked.output
    assert not (place / "runs/thinking").exists()


def test_what_cannot_fit_is_refused_before_anything_is_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disegno.training.estimating.free_bytes", lambda _: 1 << 20)
    refused = taught("giant", "--checkpointing", "--optimiser", "adamw8bit")
    assert refused.exit_code == 4, refused.output
    assert "--try-anyway" in refused.output and not (place / "runs/giant/giant.safetensors").exists()
    measuring = taught("giant", "--checkpointing", "--optimiser", "adamw8bit", "--find-rate")
    assert measuring.exit_code == 4 and "--try-anyway" in measuring.output


def test_pairs_that_are_left_out_are_named(place: Path) -> None:
    folder = write_pairs(place / "holed", 4)
    (folder / "target/0002.png").unlink()
    done = disegno(
        "teach",
        "holed",
        "--data",
        "holed",
        "--model",
        "mini",
        "--base",
        "minibase",
        *STEPS[:-4],
        "--validate-every",
        "0",
    )
    assert done.exit_code == 0 and "0002.png" in done.output and "target is missing" in done.output


def test_it_is_said_where_no_pair_has_a_caption(place: Path) -> None:
    folder = write_pairs(place / "wordless", 4)
    lines = [json.loads(line) for line in (folder / "prompt.json").read_text("utf-8").splitlines()]
    lines[0]["prompt"] = " "
    text = "\n".join(json.dumps({"source": line["source"], "target": line["target"]}) for line in lines[1:])
    (folder / "prompt.json").write_text(f"{json.dumps(lines[0])}\n{text}\n", "utf-8")
    words = ("--data", "wordless", "--model", "mini", "--base", "minibase", *STEPS[:-4], "--validate-every", "0")
    done = disegno("teach", "wordless", *words)
    assert done.exit_code == 0 and "taught without words" in done.output, done.output
    assert "Left out" not in done.output  # one caption of no words is no reason to leave the others out


MISTAKES = {
    "another request": (["discs", "--data", "pairs", "--rank", "8"], 2, "another training"),
    "no pairs": (["x"], 2, "disegno teach edges --data pairs"),
    "no such data": (["x", "--data", "nowhere"], 2, "nowhere"),
    "no such recipe": (["x", "--data", "pairs", "--recipe", "ctrllora"], 2, "ctrlora"),
    "no such model": (["x", "--data", "pairs", "--model", "minni"], 2, "mini"),
    "two data sets": (["x", "--data", "pairs", "--data", "pairs"], 2, "learns from one data set"),
    "a name that no file has": (["a/b", "--data", "pairs"], 2, "1 to 100 letters"),
    "a name above": (["..", "--data", "pairs"], 2, "no dot at an end"),
    "a bad rate": (["x", "--data", "pairs", "--rate", "0"], 2, "rate"),
    "nothing to resume": (["--resume", "pairs"], 2, "holds no training"),
    "resume and more": (["--resume", "runs/discs", "--steps", "9"], 2, "give it alone"),
    "a name of the model's own": (["canny", "--data", "pairs"], 2, "my-canny"),
    "a name of no file": (["tile-colorfix", "--data", "pairs", "--model", "mini"], 2, "my-tile-colorfix"),
    "a name that is taken": (["discs", "--data", "pairs", "--run", "elsewhere"], 2, "--replace"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_clear_line(place: Path, discs: Result, name: str) -> None:
    words, code, said = MISTAKES[name]
    done = disegno("teach", *words)
    assert done.exit_code == code, done.output
    assert said in done.output


def test_two_processes_learn_what_one_learns_from_twice_the_batch(place: Path) -> None:
    """Started by accelerate, on gloo; the rows are the same, their gradients are summed in another order."""
    plain = ("--dtype", "fp32", "--validate-every", "0")
    one = taught("one", "--batch", "2", *plain)
    assert one.exit_code == 0, one.output
    launched = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    words = ("-m", "disegno.training", "two", "--data", "pairs", "--model", "mini", *STEPS, *plain, "--json")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *launched, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["step"] == 4
    alone, together = (_losses(place / "runs" / name) for name in ("one", "two"))
    assert [step for step, _ in together] == [1, 2, 3, 4]
    # float32 sums in another order; measured: 2e-6. Another row or noise changes a loss by a tenth or more.
    assert [loss for _, loss in together] == pytest.approx([loss for _, loss in alone], rel=1e-4)


def _losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text("utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "step" in line]
