"""The annotators as modules of A1111's ControlNet extension: its names, labels and sliders, then our own."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import ParamSpec, describe, params_from_a1111, read
from disegno.core.errors import UnknownName
from disegno.core.request import COLOUR_FIX, REFERENCES, Scalar
from disegno.engine.album import INPAINT
from disegno.serving.a1111.control_types import KNOWN, RESOLUTION, Known, Slider

_OWN_TAGS: Mapping[str, tuple[str, ...]] = {
    "scribble": ("Scribble",),
    "segments": ("Segmentation",),
    "soft-edge": ("SoftEdge",),
    "straight-lines": ("MLSD",),
    "inpainting": ("Inpaint",),
    "inpainting-brush": ("Inpaint",),
    "pixelate": ("Tile",),
    "grayscale": ("Recolor",),
}
_MAX_THRESHOLDS = 2  # a unit has threshold_a and threshold_b, no more
KEEPS_THE_REST = "inpaint_only"
# No drawing: the control looks at the picture itself, by the CLIP that it was made for
SEEING = (
    *("ip-adapter-auto", "ip-adapter_clip_sd15"),
    *("ip-adapter_clip_sdxl", "ip-adapter_clip_sdxl_plus_vith"),
)
_OTHER_EYES = {
    "ip-adapter_face_id": "reads what a recogniser of faces (InsightFace) sees",
    "ip-adapter_face_id_plus": "reads what a recogniser of faces (InsightFace) sees",
    "ip-adapter_pulid": "reads what a recogniser of faces (InsightFace) sees",
}
_UNBUILT = ("revision_",)
_COLOUR_FIXES: Mapping[str, tuple[str, ...]] = {  # what their thresholds are
    "tile_colorfix": ("variation",),
    "tile_colorfix+sharp": ("variation", "sharpness"),
}
_FILLING = ("inpaint", KEEPS_THE_REST)  # no drawing: the control is told what to fill


@dataclass(frozen=True)
class Module:
    """A module that can be used: how A1111 shows it, the annotator behind it, and what its thresholds set there.

    `control`: of a module that needs no model, the control that it is; `beside`: the one that it is beside the model's.
    """

    known: Known
    annotator: str
    thresholds: tuple[str, ...]
    control: str | None = None
    beside: str | None = None

    def params(self, *thresholds: float | None) -> dict[str, Scalar]:
        """Return the parameters for threshold_a and threshold_b, the annotator's or the control's.

        One outside its slider is left out.
        """
        if self.annotator == INPAINT:
            return {}
        numbers = [-1.0 if x is None else x for x in thresholds]
        if self.control is not None or self.beside is not None:
            named = zip(self.thresholds, numbers, self.threshold_sliders, strict=False)
            return {
                name: _whole(number, slider) for name, number, slider in named if slider.min <= number <= slider.max
            }
        module = ANNOTATORS.load(self.annotator)
        if read(module).a1111_sliders:
            return params_from_a1111(module, *numbers)
        specs = {spec.name: spec for spec in describe(module)}
        return {
            name: int(number) if specs[name].kind == "int" else number
            for name, number, slider in zip(self.thresholds, numbers, self.threshold_sliders, strict=False)
            if slider.min <= number <= slider.max
        }

    @property
    def threshold_sliders(self) -> tuple[Slider, ...]:
        """Return the sliders of threshold_a and threshold_b."""
        return tuple(slider for slider in self.known.sliders if slider.name != RESOLUTION.name)

    def resolution(self, given: float | None) -> int | None:
        """Return the short side that a unit asks for; None: the module has none. Outside its range: its default."""
        slider = next((slider for slider in self.known.sliders if slider.name == RESOLUTION.name), None)
        if slider is None:
            return None
        return int(given) if given is not None and slider.min <= given <= slider.max else int(slider.value)


def _whole(number: float, slider: Slider) -> float:
    """Return what a slider of whole steps makes of a number. A1111 parity: the rest is cut off."""
    return int(number) if slider.step == 1 else number


@cache
def modules() -> tuple[Module, ...]:
    """Return the modules that can be used: those that A1111 knows in its order, then our own by name."""
    annotators = {name: read(ANNOTATORS.load(name)) for name in ANNOTATORS}
    behind = {alias: name for name, annotator in annotators.items() for alias in annotator.a1111_names}
    known: dict[str, tuple[str, tuple[str, ...], str | None, str | None]] = {
        **{name: (own, annotators[own].a1111_sliders, None, None) for name, own in behind.items()},
        **dict.fromkeys(_FILLING, (INPAINT, (), None, None)),
        **dict.fromkeys(SEEING, ("none", (), None, None)),
        **{module: ("none", ("fidelity",), control, None) for control, module in REFERENCES.items()},
        **{module: ("none", thresholds, None, COLOUR_FIX) for module, thresholds in _COLOUR_FIXES.items()},
    }
    theirs = [Module(k, *known[k.name]) for k in KNOWN if k.name in known]
    taken = {module.annotator for module in theirs}
    return (*theirs, *(_own(name) for name in annotators if name not in taken))


def _own(name: str) -> Module:
    numbers = [spec for spec in describe(ANNOTATORS.load(name)) if _is_slider(spec)][:_MAX_THRESHOLDS]
    sliders = tuple(_slider(spec) for spec in numbers)
    resolution = () if read(ANNOTATORS.load(name)).sizing == "own" else (RESOLUTION,)
    return Module(
        Known(name, name, _OWN_TAGS.get(name, ()), (*resolution, *sliders)), name, tuple(spec.name for spec in numbers)
    )


def _is_slider(spec: ParamSpec) -> bool:
    return spec.kind in ("int", "float") and spec.name != "seed" and None not in (spec.minimum, spec.maximum)


def _slider(spec: ParamSpec) -> Slider:
    assert spec.minimum is not None and spec.maximum is not None and isinstance(spec.default, int | float)
    step = 1 if spec.kind == "int" else 0.01
    return Slider(spec.name.replace("_", " ").capitalize(), spec.default, spec.minimum, spec.maximum, step)


def find_module(name: str) -> Module:
    """Return the module of that name or label, in any case. Raises UnknownName saying whether A1111 knows it."""
    wanted = name.lower()
    for module in modules():
        own = module.annotator if module.known.name == module.annotator else ""
        if wanted in (module.known.name, module.known.label.lower()) or (own and wanted.replace("_", "-") == own):
            return module
    known = next((known for known in KNOWN if wanted in (known.name, known.label.lower())), None)
    if known is not None:
        if known.name in _OTHER_EYES:
            raise UnknownName(
                f"The module {name!r} {_OTHER_EYES[known.name]}, which is not part of this program. Use"
                " ip-adapter_clip_h with an IP-Adapter of Stable Diffusion 1.5, for faces ip-adapter-plus-face_sd15; of"
                " SDXL ip-adapter_clip_sdxl_plus_vith with ip-adapter-plus-face_sdxl_vit-h."
            )
        if wanted.startswith(_UNBUILT):
            raise UnknownName(f"The module {name!r} draws nothing, it changes how the model draws: it is not built in.")
        raise UnknownName(
            f"The module {name!r} needs weights that are not part of this program. "
            'Send the finished drawing with the module "none".'
        )
    raise UnknownName.of("module", name, [module.known.name for module in modules()])


def module_list(labels: bool = False) -> dict[str, object]:
    """Return the answer of GET /controlnet/module_list."""
    rows = modules()
    names = [module.known.label if labels else module.known.name for module in rows]
    details = {
        name: {
            "model_free": module.known.model_free,
            "sliders": [
                {"name": s.name, "value": s.value, "min": s.min, "max": s.max, "step": s.step}
                for s in module.known.sliders
            ],
        }
        for name, module in zip(names, rows, strict=True)
    }
    return {"module_list": names, "module_detail": details}
