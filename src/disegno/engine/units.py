"""From a ControlUnit to a Control: its picture is read, annotated, fitted to the canvas and shown to the controller."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import Picture, annotate_at, make_params
from disegno.backbones.base import Backbone
from disegno.controls.base import Condition, Control, Controller, Layered, Looking, Mixing
from disegno.controls.strength import Use, Used, adds_tokens, mixed
from disegno.core.errors import RequestError
from disegno.core.request import REFERENCES, ControlPass, ControlUnit
from disegno.engine.album import INPAINT, Album, with_mask
from disegno.engine.canvas import Canvas
from disegno.engine.masks import Box, mask_of
from disegno.engine.pictures import fit, pixel_perfect_resolution
from disegno.engine.residuals import Shared
from disegno.engine.studio import Studio, content_key
from disegno.engine.tasks import annotator_for, doubts, task_of
from disegno.engine.taught import as_taught
from disegno.engine.tiles import Window


@dataclass(frozen=True)
class Scene:
    """Where controls act. `width`, `height`: of the canvas, in pixels; `first_size`: of the first pass's.

    `canvas`: the picture that is changed. `windows`: in pixels, where the canvas is drawn in parts. `which`: the pass.
    """

    album: Album
    width: int
    height: int
    first_size: tuple[int, int]
    canvas: Canvas | None = None
    windows: tuple[Window, ...] = ()
    which: ControlPass = "first"


@dataclass(frozen=True)
class Prepared:
    """A unit, ready: the control that acts (one for each window, else one), what it was shown, and what is doubtful.

    `annotator`: what drew the condition. `place`: the unit's among the request's controls. `task`: which of the
    control's conditions it is.
    """

    controls: tuple[Control, ...]
    condition: Image.Image
    warnings: tuple[str, ...]
    annotator: str | None = None
    place: int = 0
    task: str = ""

    def told(self, unit: ControlUnit) -> ControlUnit:
        """Return the unit with what its condition alone does not say: the task, and that it has a hole."""
        annotate = INPAINT if self.annotator == INPAINT else unit.annotate
        return replace(unit, task=unit.task or self.task or None, annotate=annotate)


@dataclass(frozen=True)
class Shown:
    """What a control is shown: a picture (h w 3), and where it inpaints the mask of what is to be filled, (h w)."""

    picture: Picture
    mask: Picture | None = None

    def cut(self, window: Window) -> "Shown":
        """Return a part of it."""
        box = Box(window.left, window.top, window.left + window.width, window.top + window.height)
        return Shown(box.cut(self.picture), None if self.mask is None else box.cut(self.mask))

    def condition(self, task: str = "") -> Condition:
        """Return it as tensors, named by content. `task`: which of the control's conditions it is."""
        image = torch.from_numpy(self.picture).permute(2, 0, 1)[None].float() / 255  # 1 3 h w
        named = task.encode() + self.picture.tobytes()
        if self.mask is None:
            return Condition(image, content_key(named), task=task)
        mask = torch.from_numpy(self.mask > 127)[None, None].float()  # 1 1 h w
        return Condition(image, content_key(named + mask.numpy().tobytes()), mask, task)


def annotator_of(unit: ControlUnit, suggested: str | None) -> str | None:
    """Return the annotator to use: what the unit says, else the control's own, where there is one of that name."""
    if unit.annotate is not None:
        name = unit.annotate.lower().replace("_", "-")  # as the registry reads it
        return None if name == "none" else name
    if unit.mask is not None:
        return INPAINT
    if suggested is not None and suggested in ANNOTATORS:
        return suggested
    return unit.name if unit.name in ANNOTATORS else None


def idle_params(unit: ControlUnit, annotator: str | None) -> tuple[str, ...]:
    """Return what should be said of a unit's parameters: no annotator reads them where its picture is the drawing."""
    if annotator is not None or not unit.params:
        return ()
    keys = ControlUnit.__dataclass_fields__
    near = [key for name in unit.params for key in get_close_matches(name, keys, n=1)]
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    verb = "does" if len(unit.params) == 1 else "do"
    named = ", ".join(unit.params)
    return (f"The control {unit.name} is shown its picture as it is: {named} {verb} nothing.{meant}",)


def shown_to(unit: ControlUnit, scene: Scene, suggested: str | None, whole: bool = False) -> Shown:
    """Return what the control is shown: the unit's picture, annotated if asked, fitted to the canvas or `whole`."""
    name = annotator_of(unit, suggested)
    if name == INPAINT:
        return _with_hole(unit, scene)
    _check_drawing(unit, name)
    picture, resize = _picture(unit, scene, whole), unit.resize
    if (name is not None or whole) and unit.image is None and scene.canvas is not None and scene.canvas.own is not None:
        picture, resize = scene.canvas.own, scene.canvas.resize  # A1111 parity: seen before it is fitted
    if name is not None:
        module = ANNOTATORS.load(name)
        resolution = unit.resolution or pixel_perfect_resolution(picture, *scene.first_size, resize)
        picture = annotate_at(module, picture, make_params(module, unit.params), resolution, back=False)
    return Shown(picture if whole else fit(picture, scene.width, scene.height, resize))


def _check_drawing(unit: ControlUnit, annotator: str | None) -> None:
    """Raise what stands in the way of a drawing by this annotator, None: of the picture as it is."""
    if unit.mask is not None:
        raise RequestError(
            f"The control {unit.name!r} has a mask, which only a control that inpaints can use: give it"
            f" annotate={INPAINT}, or a region, if the mask is to say where the control acts."
        )
    if annotator is not None:
        make_params(ANNOTATORS.load(annotator), unit.params)


def _check_layers(unit: ControlUnit, controller: Controller, task: str) -> None:
    """Raise RequestError where the unit's layer weights are not as many as the control has layers."""
    layers = controller.layers(task) if unit.layers and isinstance(controller, Layered) else None
    if layers is not None:
        layers.require(unit.layers, unit.name)


def check(unit: ControlUnit, scene: Scene, backbone: Backbone, studio: Studio) -> None:
    """Raise what would stop a unit that acts later: its control, its pictures, its annotator."""
    controller = studio.controller(unit, backbone)
    for source in filter(None, (unit.image, unit.region, unit.mask)):
        scene.album.channels(source)
    task = task_of(unit, controller)
    _check_layers(unit, controller, task)
    name = annotator_of(unit, annotator_for(controller, task))
    if name == INPAINT:
        _hole(unit, scene)
    else:
        _check_drawing(unit, name)


def _picture(unit: ControlUnit, scene: Scene, whole: bool = False) -> Picture:
    """Return the unit's picture, (h w 3); without one of its own, the canvas's: the picture that is changed."""
    if unit.image is None:
        assert scene.canvas is not None, "a request without init has an image in every unit"
        return scene.canvas.picture
    picture = scene.album.rgb(unit.image)
    return picture if whole else _cut_like_canvas(unit, scene, picture)


def _cut_like_canvas(unit: ControlUnit, scene: Scene, picture: Picture) -> Picture:
    """Return the picture, cut as the canvas is where that is a part of a larger picture. A1111's crop_input_image."""
    canvas = scene.canvas
    if canvas is None or canvas.box is None or not unit.crop:
        return picture
    whole = fit(picture, *canvas.full_size, unit.resize)
    return fit(canvas.box.cut(whole), scene.width, scene.height, "fill")


def _with_hole(unit: ControlUnit, scene: Scene) -> Shown:
    """Return the unit's picture with the mask of its hole: the unit's own, its transparency, or the canvas's mask."""
    picture = _picture(unit, scene)
    mask = fit(_hole(unit, scene), picture.shape[1], picture.shape[0], "stretch")[:, :, 0]
    both = fit(with_mask(picture, mask), scene.width, scene.height, unit.resize)
    return Shown(np.ascontiguousarray(both[:, :, :3]), np.ascontiguousarray(both[:, :, 3]))


def _hole(unit: ControlUnit, scene: Scene) -> Picture:
    """Return the mask of what is to be filled as a grey picture (h w 3), white in the hole. Raises RequestError."""
    image = scene.album.channels(unit.image) if unit.image is not None else None
    if unit.mask is not None:
        given = _grey(mask_of(scene.album.channels(unit.mask)))
        return _cut_like_canvas(unit if image is not None else replace(unit, crop=True), scene, given)
    if image is not None and image.shape[2] == 4:
        return _cut_like_canvas(unit, scene, _grey(255 - image[:, :, 3]))
    if scene.canvas is not None and scene.canvas.mask is not None:
        return _grey(scene.canvas.mask)
    raise RequestError(
        f"The control {unit.name!r} inpaints, and there is no mask: give it one, or a picture with transparency, or a"
        " masked picture to change."
    )


def _grey(mask: Picture) -> Picture:
    """Return a mask (h w) as a grey picture, (h w 3)."""
    return np.repeat(mask[:, :, None], 3, axis=2)


def region_of(unit: ControlUnit, scene: Scene) -> Tensor | None:
    """Return where the control acts, (1 1 h w), in [0, 1], at the canvas's size; None: everywhere."""
    if unit.region is None:
        return None
    mask = _cut_like_canvas(unit, scene, _grey(mask_of(scene.album.channels(unit.region), binary=False)))[:, :, 0]
    soft = np.array(Image.fromarray(mask).resize((scene.width, scene.height), Image.Resampling.BOX))
    return torch.from_numpy(soft)[None, None].float() / 255


def prepare(unit: ControlUnit, scene: Scene, backbone: Backbone, studio: Studio) -> Prepared:
    """Return the unit's control for a scene, at the unit's strength, span and region."""
    controller = studio.controller(unit, backbone, scene.which)
    if unit.name in REFERENCES:
        unit = replace(unit, mode="balanced", params={})  # the controller has taken up both
    task = task_of(unit, controller)
    _check_layers(unit, controller, task)
    suggested = annotator_for(controller, task)
    if suggested is not None and suggested == annotator_of(unit, suggested):
        unit = as_taught(unit, suggested, studio.control_card(unit, backbone))
    looks = isinstance(controller, Looking) and controller.looks
    shown, region = shown_to(unit, scene, suggested, looks), region_of(unit, scene)
    use = Use.of(unit)
    if scene.windows:
        controls = tuple(
            Used(
                _control(controller, shown if looks else shown.cut(window), task, studio),
                replace(use, region=_cut(region, window)),
            )
            for window in scene.windows
        )
    else:
        controls = (Used(_control(controller, shown, task, studio), replace(use, region=region)),)
    if adds_tokens(controls[0]) and (unit.region or unit.layers):
        raise RequestError(
            f"The control {unit.name!r} with task={task} acts on the whole picture, by the text: leave out its region"
            " and its layers."
        )
    if unit.mix and not isinstance(controls[0].control, Mixing):
        raise RequestError(
            f"The control {unit.name!r} cannot be mixed with others: leave out mix. UniControl's conditions and"
            " IP-Adapter's pictures can."
        )
    annotator = annotator_of(unit, suggested)
    warnings = (*getattr(controller, "warnings", ()), *doubts(unit, controller), *idle_params(unit, annotator))
    if unit.base and not studio.wants_base(unit, backbone):
        warnings += (f"The control {unit.name} stands on no Base ControlNet of another file: base does nothing.",)
    return Prepared(controls, Image.fromarray(shown.picture), warnings, annotator, task=task)


def with_doubts(prepared: Sequence[Prepared]) -> tuple[Prepared, ...]:
    """Return the prepared units, with what is to be said of those that should be mixed and have nothing to mix with."""
    together = mixed(one.controls[0] for one in prepared)
    said = "mix does nothing: no other unit of this file says so and has the same span, mode, curve, layers and region."

    def is_alone(one: Prepared) -> bool:
        control = one.controls[0]
        return isinstance(control, Used) and control.use.mix and any(control is other for other in together)

    return tuple(
        replace(one, warnings=(*one.warnings, f"Unit {one.place + 1}: {said}")) if is_alone(one) else one
        for one in prepared
    )


def _cut(region: Tensor | None, window: Window) -> Tensor | None:
    return None if region is None else window.cut(region)


def _control(controller: Controller, shown: Shown, task: str, studio: Studio) -> Control:
    control = studio.control(controller, shown.condition(task))
    return control if control.sees_x else Shared(control, studio.residuals)
