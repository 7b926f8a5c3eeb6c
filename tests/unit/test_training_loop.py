"""The one loop: the same bytes however it was interrupted, and what it does when something goes wrong."""

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disegno.core.errors import Diverged, RequestError, ResourceError
from disegno.core.hold import held
from disegno.training import checkpoint, disk
from disegno.training.base import Batch, Facts, Look, Looking, TeachEvent, TeachProgress, TeachResult
from disegno.training.lesson import Habits, Lesson, Opening
from disegno.training.looks import ZERO_CONVS, norms_of
from disegno.training.run import Run
from disegno.training.stopping import Interrupted, Stop
from disegno.training.trainer import train
from disegno.weights.load import load_file, open_file
from kit import tiny_training as tiny
from kit.apple import Apple

pytestmark = pytest.mark.unit

OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "everything": {
        "ema": 0.9, "accumulate": 3, "warmup": 3, "rate_schedule": "cosine", "clip": 0.5, "validate_every": 5
    },
    "8 bit": {"optimiser": "adamw8bit"},
    "muon": {"optimiser": "muon"},
}  # fmt: skip


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory where the system has that: a thousand fsyncs take a minute on a busy disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def _two(events: Iterable[TeachEvent]) -> Iterator[TeachEvent]:
    """Yield what comes until the second event; how a look goes on does not count."""
    count = 0
    for event in events:
        yield event
        count += not isinstance(event, TeachProgress) or event.stage != "looking"
        if count == 2:
            return


def _take(events: Iterable[TeachEvent], step: int) -> None:
    """Let the training go on until this step is done."""
    next(e for e in events if isinstance(e, TeachProgress) and (e.step, e.stage) == (step, "teaching"))


def _result(events: list[TeachEvent]) -> TeachResult:
    assert isinstance(events[-1], TeachResult)
    return events[-1]


def _losses(events: list[TeachEvent]) -> dict[int, float | None]:
    return {e.step: e.loss for e in events if isinstance(e, TeachProgress) and e.stage == "teaching"}


def _net(dtype: torch.dtype = torch.float32) -> tiny.TinyLearner:
    return tiny.TinyLearner(tiny.TinyNet(512, dtype))


# ---- exact resume


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_training_that_is_ended_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, options: str, dtype: torch.dtype
) -> None:
    """Closed after every second event, begun again by another learner each time; the same steps, losses and file."""
    asked = tiny.request(steps=9, **OPTIONS[options])
    whole = tiny.run(tmp_path / "whole", asked, learner=_net(dtype))
    pieces: list[TeachEvent] = []
    for _ in range(40):
        if pieces and isinstance(pieces[-1], TeachResult):
            break
        with closing(tiny.events(tmp_path / "pieces", tiny.lesson(asked, _net(dtype)))) as events:
            pieces += _two(events)
    assert _losses(pieces) == _losses(whole)
    assert [e for e in pieces if isinstance(e, Look)] == [replace(e) for e in whole if isinstance(e, Look)]
    assert _bytes(tmp_path / "pieces") == _bytes(tmp_path / "whole")


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_that_lie_otherwise_in_memory_go_on_with_their_own_moments(tmp_path: Path, options: str) -> None:
    """A channels-last convolution's weights do not lie row by row, as a file's numbers do."""

    def learner() -> tiny.TinyLearner:
        net = tiny.TinyNet(512)
        net.first = nn.Parameter(net.first.detach().t().contiguous().t())
        return tiny.TinyLearner(net)

    asked = tiny.request(steps=9, **OPTIONS[options])
    tiny.run(tmp_path / "whole", asked, learner=learner())
    with closing(tiny.events(tmp_path / "pieces", tiny.lesson(asked, learner()))) as events:
        _take(events, 4)  # by now no moment is zero
    tiny.run(tmp_path / "pieces", asked, learner=learner())
    assert _bytes(tmp_path / "pieces") == _bytes(tmp_path / "whole")


def _bytes(folder: Path) -> bytes:
    return (folder / "tiny.safetensors").read_bytes()


HABITS = {
    "no threads": Habits(workers=0),
    "four threads": Habits(workers=4),
    "a checkpoint each step": Habits(save_minutes=0.0),
}


@pytest.mark.parametrize("name", HABITS)
def test_how_it_goes_about_its_work_changes_nothing(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = tiny.request()
    rows = tiny.Rows(30, tasks=("canny", "depth"))
    tiny.run(tmp_path / "a", asked, rows=rows)
    with caplog.at_level(logging.DEBUG):
        list(tiny.events(tmp_path / "b", tiny.lesson(asked, rows=rows), habits=HABITS[name]))
    assert load_file(tmp_path / "a/tiny.safetensors")["first"].equal(
        load_file(tmp_path / "b/tiny.safetensors")["first"]
    )


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    events = tiny.run(tmp_path, tiny.request(steps=300, validate_every=100, batch=4))
    looks = [e for e in events if isinstance(e, Look)]
    assert [look.step for look in looks] == [0, 100, 200, 300]
    assert looks[-1].loss is not None and looks[0].loss is not None and looks[-1].loss < 0.01 * looks[0].loss
    assert looks[-1].metrics["controllability"] > 0.99
    assert looks[0].metrics["zero-convs"] == 0 < looks[-1].metrics["zero-convs"]
    result = _result(events)
    assert result.why == "steps" and result.step == 300 and result.metrics == looks[-1].metrics
    with open_file(result.path) as file:
        assert file.metadata["steps"] == "300"
        assert json.loads(file.metadata["metrics"]) == result.metrics
    last = [e for e in events if isinstance(e, TeachProgress) and e.stage == "teaching"][-1]
    assert last.seconds_left == 0 and last.rate == 0.02 and last.gradient is not None


def test_an_ended_training_is_not_done_again_and_a_lost_file_is_written_again(tmp_path: Path) -> None:
    asked = tiny.request()
    first = _result(tiny.run(tmp_path, asked))
    assert tiny.run(tmp_path, asked) == [first]
    wanted = first.path.read_bytes()
    first.path.write_bytes(b"damaged")
    assert not _losses(tiny.run(tmp_path, asked))
    assert first.path.read_bytes() == wanted


def test_a_damaged_checkpoint_costs_steps_and_a_warning_but_no_bit(tmp_path: Path) -> None:
    asked = tiny.request()
    tiny.run(tmp_path / "whole", asked)
    with closing(tiny.events(tmp_path / "hurt", tiny.lesson(asked))) as events:
        _take(events, 10)
    newest = max((tmp_path / "hurt/checkpoints").iterdir())
    assert newest.name == "step-00000010"
    (newest / "weights.safetensors").write_bytes(b"")
    again = tiny.run(tmp_path / "hurt", asked)
    assert next(iter(_losses(again))) == 9  # steps 8 and 10 were saved; 10 is damaged
    assert len([w for w in _result(again).warnings if "set aside" in w]) == 1
    assert load_file(tmp_path / "hurt/tiny.safetensors").keys() == load_file(tmp_path / "whole/tiny.safetensors").keys()
    assert _weights(tmp_path / "hurt").equal(_weights(tmp_path / "whole"))


def _weights(folder: Path) -> Tensor:
    return load_file(folder / "tiny.safetensors")["first"]


# ---- what decides the weights


def test_masters_average_and_accumulation(tmp_path: Path) -> None:
    """bfloat16 weights learn in float32; one pass of four rows is four passes of one; the file has the average."""
    asked = tiny.request(batch=4, steps=30)
    tiny.run(tmp_path / "four", asked)
    tiny.run(tmp_path / "ones", replace(asked, batch=1, accumulate=4))
    # the same rows and seeds, summed in another order in float32: measured 6e-7 after 30 steps
    torch.testing.assert_close(_weights(tmp_path / "ones"), _weights(tmp_path / "four"), atol=1e-5, rtol=1e-4)
    learner = _net(torch.bfloat16)
    tiny.run(tmp_path / "half", replace(asked, rate=1e-6), learner)
    moved = _weights(tmp_path / "half") - tiny.TinyNet(512).first.bfloat16().float()
    assert _weights(tmp_path / "half").dtype == torch.float32
    assert 1e-6 < moved.abs().max() < 1e-4  # thirty steps of 1e-6, each of which bfloat16 rounds away
    tiny.run(tmp_path / "slow", replace(asked, ema=0.999))
    assert not _weights(tmp_path / "slow").equal(_weights(tmp_path / "four"))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.25, 0.5, 0.75, 1, 0.9045, 0.6545, 0.3455, 0.0955]),
    ],
)
def test_the_rate_goes_as_asked(tmp_path: Path, schedule: str, expected: list[float]) -> None:
    asked = tiny.request(steps=8, warmup=3, rate=2.0, rate_schedule=schedule)
    events = tiny.run(tmp_path, asked)
    rates = [e.rate for e in events if isinstance(e, TeachProgress) and e.stage == "teaching"]
    assert rates == pytest.approx([2 * share for share in expected], abs=1e-3)


@dataclass(frozen=True)
class Duel:
    """Two turns: the second one's weights learn from what the first one's do."""

    module: nn.Module = field(default_factory=lambda: _DuelNet())

    @property
    def turns(self) -> tuple[Any, ...]:
        named = dict(self.module.named_parameters())
        return tuple(tiny.Turn(name, {name: named[name]}, 0.01) for name in ("made", "judged"))

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        tiny.save_safetensors(path, weights or {}, {})


class _DuelNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.made = nn.Parameter(torch.zeros(8))
        self.judged = nn.Parameter(torch.ones(8))

    def forward(self, batch: Batch, turn: str) -> Tensor:
        made = self.made.sum() - 1.0
        return (made**2 if turn == "made" else (self.judged.sum() - made) ** 2).expand(len(batch.seeds))


def test_two_turns_take_their_steps_one_after_the_other(tmp_path: Path) -> None:
    """Each moves its own weights only, and resumes exactly."""
    asked = tiny.request(steps=6, validate_every=0)
    lesson = replace(tiny.lesson(asked), learner=Duel())
    list(tiny.events(tmp_path / "whole", lesson))
    for _ in range(4):
        with closing(tiny.events(tmp_path / "pieces", replace(lesson, learner=Duel()))) as events:
            list(islice(events, 2))
    whole = load_file(tmp_path / "whole/tiny.safetensors")
    assert (whole["made"] > 0).all() and (whole["judged"] < 1).all()
    assert _bytes(tmp_path / "pieces") == _bytes(tmp_path / "whole")


# ---- numbers that are not finite


class Faulty(tiny.TinyNet):
    """Gives a NaN or an infinite loss in some steps; `rows`: in one row only."""

    def __init__(self, steps: Iterator[int] | range, value: float = float("nan")) -> None:
        super().__init__()
        self.steps, self.value = set(steps), value

    def forward(self, batch: Batch, turn: str) -> Tensor:
        loss = super().forward(batch, turn)
        return loss * self.value if batch.step in self.steps and self.training else loss


@pytest.mark.parametrize("bad", [range(1), range(5, 8), range(17, 20), range(3, 19, 4)], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path, bad: range, value: float) -> None:
    events = tiny.run(tmp_path, tiny.request(), learner=tiny.TinyLearner(Faulty(bad, value)))
    assert {step for step, loss in _losses(events).items() if loss is None} == {step + 1 for step in bad}
    assert all(torch.isfinite(t).all() for t in load_file(_result(events).path).values())
    position = checkpoint.newest(tmp_path / "checkpoints").checkpoint
    assert position is not None and position.state["skipped"] == len(bad)


@pytest.mark.parametrize("first", [0, 6, 10])
def test_too_many_of_them_end_it_with_the_last_finite_state(tmp_path: Path, first: int) -> None:
    learner = tiny.TinyLearner(Faulty(range(first, 99)))
    with pytest.raises(Diverged, match=r"4 steps in a row.*lower rate"):
        tiny.run(tmp_path, tiny.request(), learner=learner)
    assert not (tmp_path / "tiny.safetensors").exists()
    found = checkpoint.newest(tmp_path / "checkpoints").checkpoint
    assert found is not None and found.step == first + 4
    clean = tiny.run(tmp_path / "clean", tiny.request(steps=max(first, 1)))
    if first:
        assert torch.equal(found.tensors["weights"]["map|first"], load_file(_result(clean).path)["first"])


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A learning rate beyond all reason makes them so at once; the checkpoint before it stays."""
    with pytest.raises(Diverged, match="NaN or infinite"):
        tiny.run(tmp_path, tiny.request(rate=1e38, save_every=1, weight_decay=1.0, validate_every=1))
    found = checkpoint.newest(tmp_path / "checkpoints").checkpoint
    assert found is not None and found.step == 0
    assert not (tmp_path / "tiny.safetensors").exists()
    assert torch.isfinite(load_file(tmp_path / "controls/latest.safetensors")["first"]).all()


# ---- a device without float64


class _OnApple(tiny.TinyNet):
    def forward(self, batch: Batch, turn: str) -> Tensor:
        losses = super().forward(batch, turn)
        return losses if self.training else losses.as_subclass(Apple)


def test_a_look_needs_no_float64_on_the_device(tmp_path: Path) -> None:
    asked = tiny.request(validate_every=20)
    learners = tiny.TinyLearner(_OnApple()), tiny.TinyLearner()
    looks = [
        [e for e in tiny.run(tmp_path / str(i), asked, learner=own) if isinstance(e, Look)]
        for i, own in enumerate(learners)
    ]
    assert looks[0] == looks[1] and looks[0][-1].loss is not None
    weights = {"controlnet_mid_block.weight": torch.full((2, 2, 1, 1), 3.0)}
    assert norms_of({name: weight.as_subclass(Apple) for name, weight in weights.items()}) == {ZERO_CONVS: 6.0}


# ---- memory


class Hungry(tiny.TinyNet):
    """Runs out of memory where more rows come at once than `most`, from a step on, as torch's CPU allocator says it."""

    def __init__(self, most: int, first: int) -> None:
        super().__init__()
        self.most, self.first_step = most, first

    def forward(self, batch: Batch, turn: str) -> Tensor:
        if len(batch.seeds) > self.most and batch.step >= self.first_step and self.training:
            torch.empty(1 << 60)  # more than any machine has
        return super().forward(batch, turn)


def test_half_as_many_rows_are_tried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = tiny.request(batch=4)
    tiny.run(tmp_path / "easy", asked)
    events = tiny.run(tmp_path / "tight", asked, learner=tiny.TinyLearner(Hungry(2, 7)))
    assert len(_losses(events)) == 20
    assert [r.message for r in caplog.records].count(
        "Step 8: memory ran out; 2 rows a pass from now on, the same batch."
    ) == 1
    torch.testing.assert_close(_weights(tmp_path / "tight"), _weights(tmp_path / "easy"), atol=1e-5, rtol=1e-4)


def test_how_many_rows_is_remembered(tmp_path: Path) -> None:
    """A resumed run does as the one that was not interrupted: to the bit."""
    asked = tiny.request(batch=4)
    whole = tiny.run(tmp_path / "whole", asked, learner=tiny.TinyLearner(Hungry(2, 7)))
    with closing(tiny.events(tmp_path / "pieces", tiny.lesson(asked, tiny.TinyLearner(Hungry(2, 7))))) as events:
        _take(events, 10)
    tiny.run(tmp_path / "pieces", asked)  # there is memory enough now: no difference
    assert _bytes(tmp_path / "pieces") == _bytes(tmp_path / "whole") and _result(whole).why == "steps"


def test_they_are_halved_until_they_fit(tmp_path: Path) -> None:
    events = tiny.run(tmp_path, tiny.request(batch=8, steps=8), learner=tiny.TinyLearner(Hungry(1, 5)))
    assert len(_losses(events)) == 8 and _result(events).why == "steps"


@pytest.mark.parametrize("batch", [1, 4])
def test_less_memory_than_for_one_row_ends_it_with_a_checkpoint(tmp_path: Path, batch: int) -> None:
    with pytest.raises(ResourceError, match=r"not enough memory for 1 rows.*step 6.*--batch.*goes on from step 5"):
        tiny.run(tmp_path, tiny.request(batch=batch), learner=tiny.TinyLearner(Hungry(0, 5)))
    again = tiny.run(tmp_path, tiny.request(batch=batch))
    assert next(iter(_losses(again))) == 6 and _result(again).why == "steps"


# ---- the disk


@dataclass
class FullDisk:
    """Writing to a file fails, as on a full disk, until it has failed `times`."""

    times: int
    failed: int = 0

    def __call__(self, *_: object) -> None:
        if self.failed < self.times:
            self.failed += 1
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("what", ["checkpoint", "result"])
def test_a_full_disk_pauses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, times: int) -> None:
    asked = tiny.request()
    tiny.run(tmp_path / "whole", asked)
    full = FullDisk(0)
    real_write, real_save = checkpoint._write, tiny.TinyLearner.save
    monkeypatch.setattr(checkpoint, "_write", lambda *a: (what == "checkpoint" and full(), real_write(*a))[1])

    def save(self: tiny.TinyLearner, path: Path, *rest: Any) -> None:
        if what == "result" and path.name == "tiny.safetensors":
            try:
                full()
            except OSError as error:
                raise ResourceError("full") from error
        real_save(self, path, *rest)

    monkeypatch.setattr(tiny.TinyLearner, "save", save)
    stages: list[str] = []
    for event in tiny.events(tmp_path / "tight", tiny.lesson(asked), habits=Habits(pause_seconds=0.01)):
        if isinstance(event, TeachProgress) and event.step == 6 and event.stage == "teaching":
            full.times = times
        stages += [event.stage] if isinstance(event, TeachProgress) and "paused" in event.stage else []
    assert len(stages) == full.failed == times and all(
        "bytes needed" in stage and " free in " in stage for stage in stages
    )
    assert _bytes(tmp_path / "tight") == _bytes(tmp_path / "whole")


def test_a_paused_training_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save", FullDisk(10**9))
    stop = Stop()
    events: list[TeachEvent] = []
    for event in tiny.events(tmp_path, tiny.lesson(tiny.request()), stop=stop, habits=Habits(pause_seconds=0.01)):
        events.append(event)
        stop.ask()
    assert _result(events).why == "stopped" and not (tmp_path / "tiny.safetensors").exists()


def test_another_fault_of_the_disk_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "save", broken)
    with pytest.raises(ResourceError, match="Input/output error"):
        tiny.run(tmp_path, tiny.request())


def test_a_disk_without_room_for_three_checkpoints_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=1500))
    with pytest.raises(ResourceError, match=r"3 checkpoints.*4608 bytes needed, 1500 free"):
        tiny.run(tmp_path, tiny.request())
    assert not list((tmp_path / "checkpoints").iterdir())


# ---- one trainer a folder, one request a folder


def test_it_stops_while_it_is_still_opening(tmp_path: Path) -> None:
    """Caches fill for an hour, say: one Ctrl-C ends that, and what was learned before is as it was."""
    asked, run = tiny.request(), Run(tmp_path, "tiny")

    def filling() -> Opening:
        for number in range(100):
            yield TeachProgress(number, 100, "caching")
        return tiny.lesson(asked)

    def ended_at(number: int) -> list[TeachEvent]:
        stop, heard = Stop(), list[TeachEvent]()
        for event in train(asked, run, filling(), stop=stop):
            heard.append(event)
            if isinstance(event, TeachProgress) and event.step == number:
                stop.ask()
        return heard

    early = ended_at(2)
    assert len(early) == 4 and (_result(early).why, _result(early).step) == ("stopped", 0)
    with closing(tiny.events(tmp_path, tiny.lesson(asked))) as events:
        _take(events, 10)
    again = ended_at(2)
    assert len(again) == 4 and (_result(again).why, _result(again).step) == ("stopped", newest_step(tmp_path))
    assert _result(list(train(asked, run, filling()))).why == "steps"


def newest_step(folder: Path) -> int:
    found = checkpoint.newest(folder / "checkpoints").checkpoint
    assert found is not None and found.step > 0
    return found.step


def test_a_second_trainer_is_refused(tmp_path: Path) -> None:
    with (
        held(tmp_path, "is training there", "--run"),
        pytest.raises(RequestError, match=rf"process {os.getpid()} on .* is training there"),
    ):
        tiny.run(tmp_path, tiny.request())
    assert _result(tiny.run(tmp_path, tiny.request())).why == "steps"  # the lock's file is there, its holder is not


def test_another_request_is_refused_with_the_differences(tmp_path: Path) -> None:
    tiny.run(tmp_path, tiny.request())
    with pytest.raises(RequestError, match=r"rank was 128 and is 4; rate was None and is 0\.1"):
        tiny.run(tmp_path, tiny.request(rank=4, rate=0.1))
    (tmp_path / "result.json").unlink()  # an ended training opens nothing, so it sees no difference
    other = replace(tiny.lesson(tiny.request()), fingerprint="other pairs")
    with pytest.raises(RequestError, match="on other pairs, on another model"):
        list(tiny.events(tmp_path, other))


def test_what_learned_nothing_yet_makes_room(tmp_path: Path) -> None:
    """The first checkpoint is written before the first step: whoever ends it there may ask for something else."""

    def ended_at_once(lesson: Lesson) -> None:
        stop = Stop()
        for event in tiny.events(tmp_path, lesson, stop=stop):
            if isinstance(event, Look):
                stop.ask()
        assert checkpoint.last_step(tmp_path / "checkpoints") == 0 and list((tmp_path / "checkpoints").iterdir())

    ended_at_once(tiny.lesson(tiny.request()))
    ended_at_once(tiny.lesson(tiny.request(steps=8), tiny.TinyLearner(tiny.TinyNet(16))))
    ended_at_once(replace(tiny.lesson(tiny.request(steps=8)), fingerprint="other pairs"))
    assert json.loads((tmp_path / "training.json").read_text("utf-8"))["fingerprint"] == "other pairs"
    assert _result(tiny.run(tmp_path, tiny.request(steps=8))).step == 8


def test_an_earlier_result_answers_no_other_request(tmp_path: Path) -> None:
    """Where somebody made room by removing the checkpoints."""
    tiny.run(tmp_path, tiny.request(steps=4))
    for path in (tmp_path / "checkpoints").iterdir():
        rmtree(path)
    assert len(tiny.run(tmp_path, tiny.request(steps=4))) == 1  # the same one is there already
    assert _result(tiny.run(tmp_path, tiny.request(steps=8))).step == 8


def test_a_training_of_several_processes_goes_on_in_as_many(tmp_path: Path) -> None:
    """Each brings a batch of its own: one alone would take other rows in a step, and half as many."""
    with closing(tiny.events(tmp_path, tiny.lesson(tiny.request()))) as events:
        _take(events, 10)
    file = tmp_path / "training.json"
    table = json.loads(file.read_text("utf-8"))
    assert table["processes"] == 1
    file.write_text(json.dumps(table | {"processes": 2}), "utf-8")
    with pytest.raises(RequestError, match=r"were 2, and are 1 here: .* accelerate launch --num_processes 2 -m"):
        tiny.run(tmp_path, tiny.request())
    del table["processes"]  # as an earlier version of the program wrote it: nothing is known
    file.write_text(json.dumps(table), "utf-8")
    assert _result(tiny.run(tmp_path, tiny.request())).why == "steps"


def test_a_training_of_before_a_field_was_there_goes_on(tmp_path: Path) -> None:
    """What an earlier version of the program wrote lacks the fields that came later: they have their defaults."""
    with closing(tiny.events(tmp_path, tiny.lesson(tiny.request()))) as events:
        _take(events, 10)
    file = tmp_path / "training.json"
    table = json.loads(file.read_text("utf-8"))
    del table["request"]["min_snr"], table["request"]["optimiser"]
    file.write_text(json.dumps(table), "utf-8")
    with pytest.raises(RequestError, match=r"min_snr was 0\.0 and is 5\.0"):
        tiny.run(tmp_path, tiny.request(min_snr=5))
    assert _result(tiny.run(tmp_path, tiny.request())).why == "steps"


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="file cannot be used"):
        tiny.run(tmp_path / "file", tiny.request())


# ---- what looks at it


@dataclass
class Listener:
    """Hears everything; fails where it is told to."""

    fails: bool = False
    heard: list[TeachEvent] = field(default_factory=list[TeachEvent])

    def hear(self, event: TeachEvent) -> None:
        self.heard.append(event)
        if self.fails:
            raise ConnectionResetError("nobody is there")


def test_what_looks_at_it_cannot_stop_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = tiny.request(validate_every=5)
    good, bad = Listener(), Listener(fails=True)
    watcher = tiny.TinyWatcher(fails=True)
    events = list(tiny.events(tmp_path, tiny.lesson(asked, watcher=watcher), listeners=(bad, good)))
    assert good.heard == bad.heard == events
    warnings = _result(events).warnings
    assert len(warnings) == 2 and len(caplog.records) == 2
    assert "camera is broken" in warnings[0] + warnings[1] and "nobody is there" in warnings[0] + warnings[1]
    assert [e.loss is not None for e in events if isinstance(e, Look)] == [True] * 5


# ---- when it ends


def test_it_stops_when_nothing_is_gained_and_keeps_the_best(tmp_path: Path) -> None:
    """A high rate keeps the map from settling: the best look's file is the result, also after an interruption."""
    asked = tiny.request(steps=5000, validate_every=20, save_every=50, until_converged=True)
    events = tiny.run(tmp_path / "whole", asked)
    result, looks = _result(events), [e for e in events if isinstance(e, Look)]
    assert result.why == "converged" and looks[-1].step < 5000
    best = max(looks, key=lambda look: look.metrics["controllability"])
    assert result.step == best.step < looks[-1].step and result.metrics == best.metrics
    with open_file(result.path) as file:
        assert file.metadata["steps"] == str(best.step)
    with closing(tiny.events(tmp_path / "pieces", tiny.lesson(asked))) as some:
        list(islice(some, best.step + 70))
    again = _result(tiny.run(tmp_path / "pieces", asked))
    assert (again.step, again.why) == (result.step, "converged")
    assert _bytes(tmp_path / "pieces") == _bytes(tmp_path / "whole")
    assert len(list((tmp_path / "pieces/controls").glob("best-*"))) <= 2


def test_a_training_that_is_enough_ends_with_what_it_has_learned(tmp_path: Path) -> None:
    asked, stop = tiny.request(steps=100, validate_every=4), Stop()
    stop.enough()  # before there is anything: not yet
    events = list(tiny.events(tmp_path / "at once", tiny.lesson(asked), stop=stop))
    assert (_result(events).why, _result(events).step) == ("enough", 1)
    stop, seen = Stop(), list[TeachEvent]()
    for event in tiny.events(tmp_path / "later", tiny.lesson(asked), stop=stop):
        seen.append(event)
        if isinstance(event, TeachProgress) and (event.step, event.stage) == (6, "teaching"):
            stop.enough()
    result = _result(seen)
    assert (result.why, result.path) == ("enough", tmp_path / "later/tiny.safetensors") and result.path.is_file()
    assert result.step == 6
    assert [event.step for event in seen if isinstance(event, Look)] == [0, 4]
    assert list(tiny.events(tmp_path / "later", tiny.lesson(asked))) == [result]  # it has ended


def test_a_stop_breaks_off_a_look_and_is_resumed_there(tmp_path: Path) -> None:
    """The look that was broken off is taken again; nothing else differs."""
    asked = tiny.request(validate_every=10)
    whole = tiny.run(tmp_path / "whole", asked)
    stop = Stop()

    @dataclass
    class Slow(tiny.TinyWatcher):
        def look(self, control: Path, step: int) -> Looking:
            if step == 10:
                stop.ask()
                raise Interrupted  # what the signal's handler does
            return (yield from super().look(control, step))

    events = list(tiny.events(tmp_path / "pieces", tiny.lesson(asked, watcher=Slow()), stop=stop))
    result = _result(events)
    assert (result.why, result.step, result.path) == ("stopped", 10, tmp_path / "pieces")
    again = tiny.run(tmp_path / "pieces", asked)
    assert [e.step for e in again if isinstance(e, Look)] == [10, 20]
    assert _result(again) == replace(_result(whole), path=tmp_path / "pieces/tiny.safetensors")
    assert _bytes(tmp_path / "pieces") == _bytes(tmp_path / "whole")


@pytest.mark.parametrize("place", range(4))
def test_whoever_leaves_during_a_look_comes_back_to_it(tmp_path: Path, place: int) -> None:
    """It is left before the look, after the watcher's word, and after each batch of the held-out loss, when the
    averages are in the place of the weights."""
    asked = tiny.request(validate_every=10, ema=0.9)
    whole = tiny.run(tmp_path / "whole", asked)
    with closing(tiny.events(tmp_path / "pieces", tiny.lesson(asked))) as events:
        looking = (e for e in events if isinstance(e, TeachProgress) and (e.step, e.stage) == (10, "looking"))
        assert len(list(islice(looking, place + 1))) == place + 1
    again = tiny.run(tmp_path / "pieces", asked)
    assert [e.step for e in again if isinstance(e, Look)] == [10, 20]
    assert _result(again) == replace(_result(whole), path=tmp_path / "pieces/tiny.safetensors")
    assert _bytes(tmp_path / "pieces") == _bytes(tmp_path / "whole")


def test_a_stop_between_two_words_of_a_look_breaks_it_off(tmp_path: Path) -> None:
    asked, stop = tiny.request(validate_every=10), Stop()
    seen: list[TeachEvent] = []
    for event in tiny.events(tmp_path, tiny.lesson(asked), stop=stop):
        seen.append(event)
        if isinstance(event, TeachProgress) and (event.step, event.stage) == (10, "looking"):
            stop.ask()
    assert _result(seen).why == "stopped" and _result(seen).step == 10
    assert [e.step for e in seen if isinstance(e, Look)] == [0]
