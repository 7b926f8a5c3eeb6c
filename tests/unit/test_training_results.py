"""Which files a training leaves, and what it says of them: the best look's, a base's conditions, a full disk."""

import errno
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from torch import Tensor

from disegno.core.errors import RequestError
from disegno.core.request import FILELESS
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.training.base import Facts, Look, TeachEvent, TeachProgress, TeachResult
from disegno.training.data.shards import Told
from disegno.training.lesson import Habits, opened
from disegno.training.processes import ALONE
from disegno.training.publish import publish, require_free
from disegno.training.recipes import RECIPES
from disegno.training.result import condition_path
from disegno.training.run import Run, ended
from disegno.training.stopping import Stop
from disegno.training.teach import eclipsed, open_lesson, require_found, require_judged, run_of, telling
from disegno.training.trainer import train
from disegno.weights.load import open_file
from kit import tiny_training as tiny
from kit.pairs import write_pairs

pytestmark = pytest.mark.unit

TASKS = ("edges", "colours")
QUICKLY = Habits(pause_seconds=0.01)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory where the system has that: a thousand fsyncs take a minute on a busy disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def _steps(path: Path) -> int:
    with open_file(path) as file:
        return int(file.metadata["steps"])


def _result(events: list[TeachEvent]) -> TeachResult:
    assert isinstance(events[-1], TeachResult)
    return events[-1]


# ---- a base and its conditions


@dataclass(frozen=True)
class Several(tiny.TinyLearner):
    """Saves a file for each of its tasks, beside its own."""

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        for file in (path, *(condition_path(path, task) for task in TASKS)):
            super().save(file, facts, weights)


def _several(folder: Path) -> Run:
    asked = tiny.request(steps=5000, validate_every=20, save_every=50, until_converged=True)
    run = Run(folder, "bb", tasks=TASKS)
    assert _result(list(train(asked, run, opened(tiny.lesson(asked, Several()))))).why == "converged"
    return run


def test_the_run_of_a_base_knows_its_conditions(tmp_path: Path) -> None:
    asked = TeachRequest(name="bb", data=("edges=a", "colours=b"), recipe="base")
    names = [file.name for file in run_of(asked, tmp_path).files(tmp_path / "bb.safetensors")]
    assert names == ["bb_edges.safetensors", "bb_colours.safetensors", "bb.safetensors"]
    assert run_of(TeachRequest(name="one", data=("a",)), tmp_path).tasks == ()


def test_the_best_look_of_a_base_is_kept_and_exported_with_its_conditions(tmp_path: Path) -> None:
    run = _several(tmp_path)
    result = ended(run)
    assert result is not None
    for file in (*run.files(run.file), *run.files(run.best(result.step))):
        assert _steps(file) == result.step
    assert len(list(run.controls.glob("best-*"))) <= 2 * (len(TASKS) + 1)
    run.files(run.file)[0].unlink()
    assert ended(run) is None  # it has not ended: a part of the result is missing


def test_a_base_is_published_with_its_conditions(tmp_path: Path) -> None:
    run, settings = _several(tmp_path / "run"), Settings(model_dirs=(tmp_path / "models",))
    controls = tmp_path / "models/controls"
    controls.mkdir(parents=True)
    other = controls / "bb_colours.safetensors"
    other.write_bytes(b"somebody's")
    with pytest.raises(RequestError, match="bb_colours"):
        require_free(run, settings)
    other.unlink()
    home = publish(run, settings)
    assert home == controls / "bb.safetensors"
    assert {file.name: file.read_bytes() for file in controls.iterdir()} == {
        file.name: file.read_bytes() for file in run.files(run.file)
    }
    require_free(run, settings)
    other.write_bytes(b"cut short")
    publish(run, settings)
    assert other.read_bytes() == run.files(run.file)[1].read_bytes()


# ---- a full disk


@dataclass(frozen=True)
class Cramped(tiny.TinyLearner):
    """Cannot write the files that `prefix` begins, of the steps in `tries`, so many times each."""

    prefix: str = "latest"
    tries: dict[int, int] = field(default_factory=dict[int, int])
    number: int = errno.ENOSPC

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        if path.name.startswith(self.prefix) and self.tries.get(facts.steps, 0) > 0:
            self.tries[facts.steps] -= 1
            raise OSError(self.number, "No space left on device")
        super().save(path, facts, weights)


def test_a_look_waits_for_room_and_sees_its_own_step(tmp_path: Path) -> None:
    asked = tiny.request(steps=100, validate_every=20, save_every=50)
    sound = [event for event in tiny.run(tmp_path / "sound", asked) if isinstance(event, Look)]
    lesson = tiny.lesson(asked, Cramped(tries={60: 1, 80: 3}))
    events = list(tiny.events(tmp_path / "full", lesson, habits=QUICKLY))
    assert [event for event in events if isinstance(event, Look)] == sound
    assert [e.step for e in events if isinstance(e, TeachProgress) and "paused" in e.stage] == [60, 80, 80, 80]
    assert _result(events).warnings == ()


def test_no_look_is_taken_of_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    asked = tiny.request(steps=100, validate_every=20, save_every=50)
    lesson = tiny.lesson(asked, Cramped(tries={60: 1, 100: 1}, number=errno.EIO))
    events = list(tiny.events(tmp_path, lesson, habits=QUICKLY))
    assert [event.step for event in events if isinstance(event, Look)] == [0, 20, 40, 80]
    result = _result(events)
    assert "Writing the control to look at failed" in result.warnings[0]
    assert (result.step, result.metrics) == (100, {})  # the last look saw other weights


def test_a_best_that_was_not_kept_is_not_said_to_be_the_result(tmp_path: Path) -> None:
    asked = tiny.request(steps=5000, validate_every=20, save_every=50, until_converged=True)
    best = _result(tiny.run(tmp_path / "sound", asked)).step
    lesson = tiny.lesson(asked, Cramped(prefix="best", tries={best: 1}, number=errno.EIO))
    events = list(tiny.events(tmp_path / "full", lesson, habits=QUICKLY))
    result, looks = _result(events), [event for event in events if isinstance(event, Look)]
    assert result.why == "converged" and result.step == looks[-1].step == _steps(result.path) > best
    assert result.metrics == looks[-1].metrics and "Keeping the best failed" in result.warnings[0]
    said = json.loads((tmp_path / "full/result.json").read_text())
    assert said["step"] == result.step


def test_a_best_waits_for_room_and_is_looked_at_again_where_it_was_stopped(tmp_path: Path) -> None:
    asked, stop = tiny.request(validate_every=10, until_converged=True), Stop()
    lesson = tiny.lesson(asked, Cramped(prefix="best", tries={10: 10**9}))
    seen: list[TeachEvent] = []
    for event in tiny.events(tmp_path, lesson, stop=stop, habits=QUICKLY):
        seen.append(event)
        if isinstance(event, TeachProgress) and "paused" in event.stage:
            stop.ask()
    assert _result(seen).why == "stopped" and [e.step for e in seen if isinstance(e, Look)] == [0]
    again = tiny.run(tmp_path, asked)
    assert [e.step for e in again if isinstance(e, Look)] == [10, 20]
    assert (tmp_path / "controls/best-00000010.safetensors").exists() or _result(again).step == 20


# ---- when nothing can be judged


@pytest.mark.parametrize(
    ("fields", "num_held", "said"),
    [
        ({"validate_every": 0}, None, "--validate-every 0"),
        ({"holdout": 0}, 0, "--holdout 0"),
        ({}, 0, "too few pairs"),
        ({}, None, ""),
        ({}, 1, ""),
        ({"validate_every": 0, "until_converged": False}, 0, ""),
    ],
)
def test_a_training_that_should_stop_by_itself_needs_something_to_go_by(
    fields: dict[str, object], num_held: int | None, said: str
) -> None:
    asked = tiny.request(**{"until_converged": True} | fields)
    with pytest.raises(RequestError, match=said) if said else nullcontext():
        require_judged(asked, num_held)


@pytest.mark.parametrize(("fields", "said"), [({"validate_every": 0}, "--validate-every 0"), ({}, "too few pairs")])
def test_it_is_refused_before_anything_is_learned(tmp_path: Path, fields: dict[str, object], said: str) -> None:
    data = write_pairs(tmp_path / "pairs", 3, 64)
    asked = tiny.request(until_converged=True, data=[str(data)], **fields)
    with pytest.raises(RequestError, match=said):
        list(open_lesson(asked, run_of(asked, tmp_path / "run"), Settings(cache_dir=tmp_path), ALONE))


# ---- opening


def test_whoever_no_longer_listens_ends_what_is_told_of() -> None:
    """Tars are fetched for hours, say: where that is left, it is not waited for."""
    told_of: list[int] = []

    def fetching(told: Told) -> str:
        for count in range(1, 10_000):
            told("fetching", count, 10_000)
            told_of.append(count)
            time.sleep(0.001)
        return "all of it"

    with closing(telling(fetching)) as news:
        assert next(news).stage == "fetching"
    assert 0 < len(told_of) < 5_000
    heard = telling(lambda told: told("indexing", 1, 1))
    assert [news.stage for news in heard] in (["indexing"], [])


@pytest.mark.parametrize("name", FILELESS)
def test_a_control_that_no_file_could_ever_be_is_not_taught(name: str) -> None:
    request = TeachRequest(name=name, data=("pairs",), model="mini")
    with pytest.raises(RequestError, match=f"needs no file.*my-{name}"):
        require_found(request, RECIPES.load("ctrlora").ABOUT)
    require_found(request, RECIPES.load("lora").ABOUT)  # prompts name it
    require_found(replace(request, name=f"my-{name}"), RECIPES.load("ctrlora").ABOUT)


def test_it_is_said_where_the_built_in_models_control_has_the_name() -> None:
    request = TeachRequest(name="canny", data=("pairs",), model="mini")
    (warning,) = eclipsed(request, RECIPES.load("controlnet").ABOUT)
    assert "'canny'" in warning and "--model" in warning
    assert not eclipsed(request, RECIPES.load("lora").ABOUT)
    assert not eclipsed(replace(request, name="discs"), RECIPES.load("controlnet").ABOUT)
