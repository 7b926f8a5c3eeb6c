"""From a ControlUnit to a Control: its picture is read, annotated, fitted to the canvas and shown to the controller."""

from dataclasses import dataclass

import torch
from PIL import Image

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import Picture, annotate_at, make_params
from disegno.backbones.base import Backbone
from disegno.controls.base import Condition, Control
from disegno.controls.strength import Use, Used
from disegno.core.request import ControlUnit, Request
from disegno.engine.pictures import fit, pixel_perfect_resolution, read_picture
from disegno.engine.residuals import Shared
from disegno.engine.studio import Studio, content_key


@dataclass(frozen=True)
class Prepared:
    """A unit, ready: the control that acts, what it was shown, and what is doubtful about it, in plain words."""

    control: Control
    condition: Image.Image
    warnings: tuple[str, ...]


def annotator_of(unit: ControlUnit, suggested: str | None) -> str | None:
    """Return the annotator to use: what the unit says, else the control's own, where there is one of that name."""
    if unit.annotate is not None:
        return None if unit.annotate.lower() == "none" else unit.annotate
    if suggested is not None and suggested in ANNOTATORS:
        return suggested
    return unit.name if unit.name in ANNOTATORS else None


def condition_picture(unit: ControlUnit, width: int, height: int, suggested: str | None) -> Picture:
    """Return what the control is shown, uint8 (h w 3): the unit's picture, annotated if asked, fitted to the canvas."""
    assert unit.image, "a request without init has an image in every unit"
    picture = read_picture(unit.image)
    name = annotator_of(unit, suggested)
    if name is not None:
        module = ANNOTATORS.load(name)
        resolution = unit.resolution or pixel_perfect_resolution(picture, width, height, unit.resize)
        picture = annotate_at(module, picture, make_params(module, unit.params), resolution)
    return fit(picture, width, height, unit.resize)


def prepare(unit: ControlUnit, request: Request, backbone: Backbone, studio: Studio) -> Prepared:
    """Return the unit's control for this request's canvas, at the unit's strength and span."""
    assert request.width and request.height, "the request is not concrete yet"
    controller = studio.controller(unit, backbone)
    shown = condition_picture(unit, request.width, request.height, controller.annotator)
    image = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255  # 1 3 h w
    condition = Condition(image, content_key(shown.tobytes()))
    control = studio.control(controller, condition)
    if not control.sees_x:
        control = Shared(control, studio.residuals)
    warnings = tuple(getattr(controller, "warnings", ()))
    return Prepared(Used(control, Use.of(unit)), Image.fromarray(shown), warnings)
