"""`teach`: a request becomes a training. Its pairs are found, its caches filled, its model opened; then the one loop.

teach(request, settings, folder) -> Iterator[TeachProgress | Look | TeachResult]
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from typing import TypeVar

from disegno.core.errors import BadData, RequestError
from disegno.core.request import FILELESS
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.engine.studio import BUILT_IN, Studio
from disegno.training.base import Estimate, Events, Facts, Teaching, TeachProgress, Watcher
from disegno.training.cache import Share
from disegno.training.data.dataset import Dataset
from disegno.training.data.opening import open_pairs
from disegno.training.data.problems import KINDS
from disegno.training.data.shards import Share as Shards
from disegno.training.data.shards import Told, is_pattern
from disegno.training.data.split import split
from disegno.training.estimating import STAGE, estimating, timed
from disegno.training.lesson import Habits, Lesson, Opening
from disegno.training.opening import open_training
from disegno.training.pairs import Pairs, params_of
from disegno.training.processes import ALONE, Processes
from disegno.training.recipe import About
from disegno.training.recipes import RECIPES
from disegno.training.run import Run
from disegno.training.stopping import Interrupted, Stop
from disegno.training.style_watcher import StyleWatcher
from disegno.training.trainer import train
from disegno.training.watcher import open_watcher
from disegno.weights.built_in import built_in_folder, conditions_of

_SUFFIX = {"file": ".safetensors", "folder": ""}
_SHOWN_WARNINGS = 5
_POLL_SECONDS = 0.2
_PICTURE = "none"  # the annotator whose drawing is the picture: a condition for recipes that look at none

T = TypeVar("T")


def teach(
    request: TeachRequest, settings: Settings, folder: Path, listeners: Sequence[Events] = (),
    stop: Stop | None = None, processes: Processes = ALONE, habits: Habits | None = None,
) -> Teaching:  # fmt: skip
    """Yield what happens until what was asked for has been learned, in the run folder `folder`; see `train`."""
    run = run_of(request, folder)
    if processes.device is not None:
        settings = replace(settings, device=str(processes.device))
    opening = _estimated(request, run, settings, processes, habits or Habits())
    return train(request, run, opening, listeners, stop, processes, habits)


def run_of(request: TeachRequest, folder: Path) -> Run:
    """Return the run of a request in its folder. Raises UnknownName where there is no such recipe, RequestError."""
    about = _about(request)
    tasks = tuple(named_data(request, about)) if about.beside else ()
    return Run(folder, request.name, _SUFFIX[about.saves], tasks, about.makes)


def _estimated(request: TeachRequest, run: Run, settings: Settings, processes: Processes, habits: Habits) -> Opening:
    """Open the lesson, and say beforehand what it will take. Raises ResourceError where it does not fit."""
    lesson, found = yield from open_fitting(request, run, settings, processes, habits)
    if processes.is_first:
        yield TeachProgress(0, request.steps, STAGE, estimate=replace(found, seconds=timed(lesson)))
    return lesson


def open_fitting(
    request: TeachRequest, run: Run, settings: Settings, processes: Processes, habits: Habits
) -> Generator[TeachProgress, None, tuple[Lesson, Estimate]]:
    """Yield progress, and return what `open_lesson` does, and what it will take.

    Raises what that raises, and ResourceError where it does not fit into memory and `habits` refuse it.
    """
    pairs = yield from _find_pairs(request, settings, processes)
    found = yield from estimating(request, settings, processes.local_count, habits.refuses)
    return (yield from _open(request, run, settings, processes, pairs)), found


def _about(request: TeachRequest) -> About:
    return RECIPES.load(request.recipe).ABOUT


def open_lesson(request: TeachRequest, run: Run, settings: Settings, processes: Processes) -> Opening:
    """Yield progress, and return all that the loop needs.

    Raises RequestError, BadData, ModelFileError, ResourceError.
    """
    pairs = yield from _find_pairs(request, settings, processes)
    return (yield from _open(request, run, settings, processes, pairs))


def _find_pairs(
    request: TeachRequest, settings: Settings, processes: Processes
) -> Generator[TeachProgress, None, dict[str, Dataset]]:
    """Yield how far it is, and return task -> its pairs. Raises RequestError, BadData."""
    require_judged(request)
    require_found(request, _about(request))
    pairs: dict[str, Dataset] = {}
    for task, spec in named_data(request, _about(request)).items():
        pairs[task] = yield from _found(request, spec, settings, processes, _shows(_about(request)))
    return pairs


def _open(
    request: TeachRequest, run: Run, settings: Settings, processes: Processes, pairs: Mapping[str, Dataset]
) -> Opening:
    about = _about(request)
    parts = {task: split(own, request.holdout) for task, own in pairs.items()}
    taught, held = ({task: both[i] for task, both in parts.items()} for i in (0, 1))
    require_judged(request, sum(map(len, held.values())))
    owns = processes.count > 1 and any(is_pattern(spec) for spec in named_data(request, about).values())
    share = Share() if owns else Share(processes.local_rank, processes.local_count)
    opened = yield from open_training(request, taught, held, Studio(settings), share)
    first = next(iter(pairs.values()))
    return Lesson(
        request=request,
        learner=opened.learner,
        examples=opened.examples,
        held_out=opened.held_out,
        facts=Facts(
            name=request.name,
            annotator=request.annotator or first.annotator,
            params=params_of(first, request.annotator, request.params),
            training_pairs=processes.total(len(opened.examples)) if owns else len(opened.examples),
            licence=request.licence,
        ),
        fingerprint=opened.fingerprint,
        owns=owns,
        watcher=_watcher(request, about, held, run.folder, settings) if processes.is_first else None,
        warnings=(
            *unused(request, about),
            *eclipsed(request, about),
            *_wordless(about, pairs),
            *opened.doubts,
            *_few((*_lost(pairs), *opened.warnings)),
        ),
    )


def named_data(request: TeachRequest, about: About) -> dict[str, str]:
    """Return task -> data: "" where the recipe learns one condition. Raises RequestError."""
    if not about.several:
        if len(request.data) != 1:
            raise RequestError(
                f"The recipe {request.recipe} learns from one data set; {len(request.data)} were given. Give one, or"
                " use --recipe base, which learns several conditions."
            )
        return {"": request.data[0]}
    named = {task: spec for task, _, spec in (given.partition("=") for given in request.data)}
    if len(named) < len(request.data) or not all(task and spec for task, spec in named.items()):
        raise RequestError(
            f"The recipe {request.recipe} learns several conditions: give each as TASK=DATA, all of them named"
            f" differently, as in --data canny=pairs/canny. Given: {', '.join(request.data)}."
        )
    return named


def _shows(about: About) -> bool:
    """Return whether the recipe learns from conditions, and not from pictures and captions alone."""
    return any(name.startswith("condition") for name in about.wants)


def _found(
    request: TeachRequest, spec: str, settings: Settings, processes: Processes, shows: bool
) -> Generator[TeachProgress, None, Dataset]:
    """Yield how far fetching and listing are, and return the pairs. `shows`: see `_shows`."""
    shards = Shards(processes.rank, processes.count)
    annotator = request.annotator or (None if shows else _PICTURE)

    def open_(told: Told) -> Dataset:
        return open_pairs(
            spec,
            annotator=annotator,
            params=request.params,
            share=shards,
            told=told,
            cache_dir=settings.cache_dir,
        )

    return (yield from telling(open_))


def telling(call: Callable[[Told], T]) -> Generator[TeachProgress, None, T]:
    """Yield what a call tells while it runs, and return what it gives; closed, the call ends where it next tells."""
    heard, left = SimpleQueue[TeachProgress](), Event()

    def told(stage: str, count: int, of: int) -> None:
        if left.is_set():
            raise Interrupted
        heard.put(TeachProgress(count, of, stage))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(call, told)
        try:
            while not done.done():
                try:
                    yield heard.get(timeout=_POLL_SECONDS)
                except Empty:
                    continue
        finally:
            left.set()
    return done.result()


def _watcher(
    request: TeachRequest, about: About, held: Mapping[str, Pairs], folder: Path, settings: Settings
) -> Watcher | None:
    """Return what looks at the training; None where the result is not one control, or nothing is held out."""
    own = next(iter(held.values()))
    if about.several or about.saves != "file" or not len(own):
        return None
    if about.makes == "lora":
        return StyleWatcher(request, own, folder / "looks", Studio(settings))
    return open_watcher(request, own, folder / "looks", settings, task=about.task)


def require_judged(request: TeachRequest, num_held: int | None = None) -> None:
    """Raise RequestError where it should end when nothing is gained any more, and nothing would tell.

    `num_held`: pairs that are kept back; None: it is not known yet.
    """
    if not request.until_converged or (request.validate_every and num_held != 0):
        return
    if not request.validate_every:
        why = "--validate-every 0 never looks at what was learned. Give another number"
    elif not request.holdout:
        why = "--holdout 0 keeps no pair back to look at. Give another number"
    else:
        why = "there are too few pairs to keep one back to look at (at most a tenth). Give more pairs"
    raise RequestError(f"--until-converged has nothing to go by: {why}, or leave out --until-converged.")


def require_found(request: TeachRequest, about: About) -> None:
    """Raise RequestError where a control of this name is never looked for among the files."""
    if _is_control(about) and request.name in FILELESS:
        raise RequestError(
            f"{request.name} is a control that needs no file, and would be drawn with in place of what is taught. "
            f"Choose another name: disegno teach my-{request.name}"
        )


def eclipsed(request: TeachRequest, about: About) -> tuple[str, ...]:
    """Return what is said where the built-in model brings a control of this name, and another model learns it."""
    if request.model == BUILT_IN or not _is_control(about) or request.name not in conditions_of(built_in_folder()):
        return ()
    return (
        f"The built-in model brings a control named {request.name!r} of its own: that one is meant where no --model is"
        " given, and this one with the model that it was taught under.",
    )


def _is_control(about: About) -> bool:
    return about.saves == "file" and about.makes == "control"


def unused(request: TeachRequest, about: About) -> tuple[str, ...]:
    """Return what was asked for that has no effect, in plain words."""
    defaults = TeachRequest(name=request.name, data=request.data)
    given = [name for name in about.unused if getattr(request, name) != getattr(defaults, name)]
    return tuple(f"{name} has no effect with the recipe {request.recipe}." for name in given)


def _wordless(about: About, pairs: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Return what is said where no pair has a caption, and the recipe learns from captions."""
    if "tokens" not in about.wants or any(_caption(own, index) for own in pairs.values() for index in range(len(own))):
        return ()
    return (
        "None of the pairs has a caption: it is taught without words. Write NAME.txt beside each picture, or let"
        " `disegno caption --write` do it.",
    )


def _caption(pairs: Dataset, index: int) -> str:
    """Return a caption; "" also where it cannot be read, which costs the pair later."""
    try:
        return pairs.caption(index)
    except BadData:
        return ""


def _lost(pairs: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Return what was left out when the data sets were listed."""
    problems = (problem for own in pairs.values() for problem in own.problems)
    return tuple(
        f"{problem.name}: of the {KINDS[problem.kind].title}{f' ({problem.detail})' if problem.detail else ''}."
        for problem in problems
        if KINDS[problem.kind].cost == "pair"
    )


def _few(warnings: Sequence[str]) -> tuple[str, ...]:
    """Return the first of many warnings, and how many more there are."""
    more = len(warnings) - _SHOWN_WARNINGS
    shown = tuple(f"Left out: {warning}" for warning in warnings[:_SHOWN_WARNINGS])
    return (*shown, f"Left out: {more} more. See `disegno dataset check`.") if more > 0 else shown
