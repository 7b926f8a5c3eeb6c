"""Which of a control's conditions a unit's picture is, where the control knows several."""

from collections.abc import Mapping

from disegno.controls.base import Controller, ManyTasks
from disegno.core.errors import RequestError, UnknownName
from disegno.core.request import ControlUnit
from disegno.engine.album import INPAINT

# Other names of one condition, as programs and papers have them
_ALSO = {
    "depth": "midas",
    "midas": "depth",
    "segmentation": "seg",
    "segments": "seg",
    "pose": "openpose",
    "scribble": "sketch",
    "lineart": "sketch",
    "line_art": "sketch",
    "soft_edge": "hed",
    "straight_lines": "mlsd",
    "style": "content",
    "blur": "tile",
    "tile": "blur",
    "repaint": "inpainting",
}


def task_of(unit: ControlUnit, controller: Controller) -> str:
    """Return what the unit says, else its annotator's task, else the control's only one; "" where it has none.

    Raises UnknownName, RequestError.
    """
    if not isinstance(controller, ManyTasks):
        return ""
    tasks = controller.tasks
    if unit.task is not None:
        return _named(unit.task, unit.name, tasks)
    by_annotator = _by_annotator(unit.annotate, tasks)
    if by_annotator is not None:
        return by_annotator
    if len(tasks) == 1:
        return next(iter(tasks))
    raise RequestError(
        f"The control {unit.name!r} knows several conditions: say which one the picture is, with task="
        f"{' | '.join(tasks)}."
    )


def doubts(unit: ControlUnit, controller: Controller) -> tuple[str, ...]:
    """Return what should be said about a unit's task: a control of one condition has none."""
    if unit.task is None or isinstance(controller, ManyTasks):
        return ()
    return (f"The control {unit.name} knows one condition: task={unit.task} does nothing.",)


def _named(given: str, name: str, tasks: Mapping[str, str | None]) -> str:
    asked = given.lower().replace("-", "_").removeprefix("control_")
    for task in (given, asked, _ALSO.get(asked), _by_annotator(given, tasks)):
        if task is not None and task in tasks:
            return task
    raise UnknownName.of(f"task of {name}", given, tasks)


def _by_annotator(annotator: str | None, tasks: Mapping[str, str | None]) -> str | None:
    """Return the task that an annotator makes pictures for, if there is one."""
    if annotator is None or annotator.lower() == "none":
        return None
    asked = annotator.lower().replace("-", "_")
    asked = "inpainting" if asked == INPAINT else asked
    return next((task for task, own in tasks.items() if asked in (task, own)), None)


def annotator_for(controller: Controller, task: str) -> str | None:
    """Return the annotator that makes the conditions that a controller is shown for a task, where there is one."""
    return controller.tasks[task] if isinstance(controller, ManyTasks) else controller.annotator
