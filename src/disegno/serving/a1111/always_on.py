"""The always-on scripts of A1111 and of Forge: what they ask for as fields of our Request, and what is said of others.

A payload that was copied from a page names all scripts of that page, most of them switched off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from disegno.core.guide import steps_of_forge
from disegno.serving.a1111.coerce import Json, shortened
from disegno.serving.a1111.errors import Fault, Path, WireError
from disegno.serving.a1111.script_args import (
    ARGS,
    EXTENSION_PAG,
    FREEU,
    MULTIDIFFUSION,
    NEVER_OOM,
    PAG,
    REFORGE_PAG,
    RESCALED_PAG,
    Arg,
    read_table,
)

CONTROLNET = ("controlnet", "controlnet m2m")
ALWAYS_ON = (*CONTROLNET, FREEU, PAG, EXTENSION_PAG, MULTIDIFFUSION, NEVER_OOM)
"""The always-on scripts that this API has, in lower case."""
_OLDER = {"freeu integrated": FREEU, "perturbed attention guidance integrated": PAG}
"""What Forge called some of them before."""
# A1111 parity: of its page; over the API the request's own fields count
_OF_THE_PAGE = ("refiner", "seed", "sampler", "comments", "extra options", "hypertile")
_NEEDLESS = ("hypertile integrated", "api payload")
_INSTEAD = {
    "soft inpainting": " With mask_round false a grey mask is drawn anew by degrees.",
    "dynamicthresholding (cfg-fix) integrated": " Against the glare of strong guidance there is guide.apg, at /v1.",
}
TILES, MAX_OVERLAP = (64, 4096), 0.75  # of a Request's tiles: the smallest and the largest, in pixels
_VAE_TILE_PX = 512
_BLOCKS = ("input", "middle", "output")  # of a UNet


@dataclass(frozen=True)
class Drawing:
    """What a script must know of the drawing: how many steps are done, and whether the picture is seamless."""

    num_steps: int
    seamless: bool = False


@dataclass(frozen=True)
class Asked:
    """A script that is on. `title`: as it was given; `args`: by their names; `at`: where they stand in the body."""

    title: str
    args: Mapping[str, Json]
    at: Path
    drawing: Drawing

    def number(self, name: str) -> float:
        """Return a numeric argument."""
        value = self.args[name]
        return value if isinstance(value, int | float) else 0

    def span(self) -> tuple[float, float] | None:
        """Return the shares of the steps after which, and before which, it acts; None: in no step."""
        return steps_of_forge(self.number("start"), self.number("end"), self.drawing.num_steps)


@dataclass(frozen=True)
class Scripts:
    """What the scripts of a body make of it: fields of a Request (dotted: guide.pag), and what is reported."""

    fields: Mapping[str, object]
    warnings: tuple[str, ...]


def translate_scripts(scripts: Mapping[str, Json], drawing: Drawing) -> Scripts:
    """Return what all always-on scripts but ControlNet ask for. Raises WireError where one is on that is not here."""
    fields: dict[str, object] = {}
    told: list[str] = []
    page: list[str] = []
    needless: list[str] = []
    off: list[str] = []
    for name, script in scripts.items():
        title = name.strip().lower()
        title = _OLDER.get(title, title)
        if title in CONTROLNET:
            continue
        if title in _OF_THE_PAGE:
            page.append(name)
        elif title in _NEEDLESS:
            needless.append(name)
        elif title in _MAKE or title == NEVER_OOM:
            made = _made(title, name, script, drawing)
            if twice := made.fields.keys() & fields.keys():
                raise WireError(f"Two always-on scripts say {min(twice)}: leave out {shortened(name)}, or the other.")
            fields |= made.fields
            told += made.warnings
        elif not _is_off(script):
            raise WireError(_refusal(name, title))
        else:
            off.append(name)
    told += _said(page, "do nothing over the API, as in A1111: the request's own fields count.")
    told += _said(needless, "change no picture, and are passed over.")
    told += _said(off, "are not built in, and are off: passed over.")
    return Scripts(fields, tuple(told))


def _said(names: Sequence[str], what: str) -> list[str]:
    return [f"The always-on scripts {', '.join(names)} {what}"] if names else []


def _refusal(name: str, title: str) -> str:
    if title in _INSTEAD:
        return f"Script {shortened(name)} is not built in.{_INSTEAD[title]}"
    return f"Script {shortened(name)} not found. Always on here: {', '.join(ALWAYS_ON)}."


def _args(script: Json) -> Json:
    return script.get("args") if isinstance(script, dict) else script


def _is_off(script: Json) -> bool:
    """Return whether a script's first argument, which switches most of them on, says that it is off, or it has none.

    Null says nothing: it may stand for a picture.
    """
    args = _args(script)
    return args in (None, []) or (isinstance(args, list) and (args[0] is False or args[0] in ("false", "False")))


def _made(title: str, name: str, script: Json, drawing: Drawing) -> Scripts:
    """Return what one script makes. A shorter list of arguments is allowed: missing ones are the defaults."""
    at: Path = ("alwayson_scripts", name, "args")
    args = _args(script)
    if args is None:
        args = []
    if not isinstance(args, list):
        raise WireError.of_fields(Fault(at, f"arguments are a list (given: {shortened(args)})", "type_error.list"))
    if title == NEVER_OOM:
        return _never_oom(name, args, drawing)
    if _is_off(args):
        return Scripts({}, ())
    table: Sequence[Arg] = ARGS[title]
    if title == EXTENSION_PAG:
        table, args = _layout(table, args)
    if len(args) > len(table):
        raise WireError.of_fields(Fault(at, f"at most {len(table)} arguments are known (given: {len(args)})"))
    given = read_table(table, args, at)
    return _MAKE[title](Asked(name, given, at, drawing)) if given["enabled"] else Scripts({}, ())


def _layout(table: Sequence[Arg], args: list[Json]) -> tuple[Sequence[Arg], list[Json]]:
    """Return the table and the arguments of the extension's version: later ones rescale, the latest choose a pass."""
    if len(args) < 4 or args[3] in (*_BLOCKS, None):
        return table, args
    chooses = len(args) < 6 or args[5] not in _BLOCKS
    return RESCALED_PAG, args if chooses else [*args[:5], None, *args[5:]]


def _acting(asked: Asked, fields: Mapping[str, object]) -> Scripts:
    """Return the fields for the steps in which a script acts; none where it acts in no step."""
    if (span := asked.span()) is None:
        return Scripts({}, (f"{asked.title} does nothing: no step lies between its start and its end.",))
    return Scripts({**fields, **dict(zip(("start", "end"), span, strict=True))}, ())


def _freeu(asked: Asked) -> Scripts:
    made = _acting(asked, {name: asked.number(name) for name in ("b1", "b2", "s1", "s2")})
    if not made.fields:
        return made
    return Scripts({f"freeu.{name}": value for name, value in {**made.fields, "version": 2}.items()}, made.warnings)


def _pag(asked: Asked) -> Scripts:
    if asked.number("attenuation"):
        raise _not_built_in(asked, "attenuation", 0)
    if asked.number("scale") <= 0:
        return Scripts({}, ())
    made = _acting(asked, {})
    if not made.fields:
        return made
    spans = {f"guide.pag_{name}": value for name, value in made.fields.items()}
    return Scripts({"guide.pag": asked.number("scale"), **spans}, ())


_USUAL_PAG: Mapping[str, tuple[Json, ...]] = {
    "adaptive_scale": (0,),
    "rescale": (0,),
    "rescale_mode": ("full", "partial"),
    "hr_mode": ("Both",),
    "block": ("middle",),
    "block_id": (0,),
    "block_list": ("",),
    "hr_override": (False,),
    "sigma_start": (-1,),
    "sigma_end": (-1,),
}
"""What the extension's arguments beside its scale may be here: then it does what Forge's own does."""


def _extension_pag(asked: Asked) -> Scripts:
    for name, usual in _USUAL_PAG.items():
        if name in asked.args and asked.args[name] not in usual:
            raise _not_built_in(asked, name, usual[0])
    scale = asked.number("scale")
    return Scripts({"guide.pag": scale} if scale > 0 else {}, ())


def _not_built_in(asked: Asked, name: str, usual: Json) -> WireError:
    given = shortened(asked.args[name])
    return WireError.of_fields(Fault((*asked.at, name), f"not built in here: leave it at {usual!r} (given: {given})"))


def _multidiffusion(asked: Asked) -> Scripts:
    side = min(asked.number("tile_width"), asked.number("tile_height"))
    size = max(int(side) // 8 * 8, TILES[0])
    told = f"{asked.title}: it is drawn as MultiDiffusion, whose parts weigh less towards their edges here."
    mixed = asked.args["method"] != "MultiDiffusion"
    fields = {"tiles.size": min(size, TILES[1]), "tiles.overlap": min(asked.number("tile_overlap") / size, MAX_OVERLAP)}
    return Scripts(fields, (told,) if mixed else ())


def _never_oom(name: str, args: Sequence[Json], drawing: Drawing) -> Scripts:
    """Return the VAE's parts. Forks have words and more arguments there, of memory alone: they are passed over."""
    unet, vae = (args[i] if i < len(args) else False for i in range(2))
    told = [f"{name}: what is kept in memory is decided by this program itself."] if _is_said(unet) else []
    if not _is_said(vae):
        return Scripts({}, tuple(told))
    if drawing.seamless:
        return Scripts({}, (*told, f"{name}: the VAE takes the picture as a whole, for tiling."))
    return Scripts({"vae_tile": _VAE_TILE_PX}, tuple(told))


def _is_said(value: Json) -> bool:
    return value is True or value in (1, "true", "True", "Offload nn.Linear modules", "Maximize offload")


_MAKE: Mapping[str, Callable[[Asked], Scripts]] = {
    FREEU: _freeu,
    PAG: _pag,
    REFORGE_PAG: _pag,
    EXTENSION_PAG: _extension_pag,
    MULTIDIFFUSION: _multidiffusion,
}
