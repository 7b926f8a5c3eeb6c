"""A1111's txt2img and img2img as our Requests: one for each iteration, with what is reported and how to answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from disegno.core.errors import RequestError, UnknownName
from disegno.core.infotext import HIRES_REFINER
from disegno.core.request import OWN_VAE, Request, make_request
from disegno.prompts.networks import cut_tags
from disegno.serving.a1111.always_on import Drawing, translate_scripts
from disegno.serving.a1111.coerce import Json, shortened
from disegno.serving.a1111.controlnet import Unit, legacy_names, parts_of, translate_unit, units_of
from disegno.serving.a1111.errors import Fault, Path, WireError
from disegno.serving.a1111.fields import Field, Given, nested, read_fields
from disegno.serving.a1111.forms import FILL, IMG2IMG, TXT2IMG
from disegno.serving.a1111.house import House, find_named
from disegno.serving.a1111.images import read_image
from disegno.serving.a1111.options import default_of, read_settings, request_fields
from disegno.serving.a1111.pasted import filled
from disegno.serving.a1111.scripts import Plot, Seeds, find_plot
from disegno.serving.a1111.series import SERIES, Asked, Series, Turn, make_series

Form = Literal["txt2img", "img2img"]
FORMS: Mapping[Form, Sequence[Field]] = {"txt2img": TXT2IMG, "img2img": IMG2IMG}
MAX_IMAGES = 64
MAX_ARGS = 1000
CHECKPOINT = "sd_model_checkpoint"
_SAME = ("", "use same sampler", "use same scheduler", "use same checkpoint")
_REFINED = {name: passes for passes, name in HIRES_REFINER.items()}
_RESIZE = ("stretch", "crop", "fill", "latent")


@dataclass(frozen=True)
class Order:
    """What a client asked for: the Requests, one an iteration, and what its answer needs.

    `settings`: the person's, with override_settings over them; `keep`: those that are to stay. `plot`: where a script
    makes a plot, its cells, each of as many Requests as `cells` says. `turns`: where it makes a series, the turn of
    each Request; `with_row`: a row of its pictures stands before them.
    """

    form: Form
    requests: tuple[Request, ...]
    given: Given
    settings: Mapping[str, Json]
    units: tuple[Unit, ...] = ()
    warnings: tuple[str, ...] = ()
    keep: Mapping[str, Json] = field(default_factory=dict[str, Json])
    plot: Plot | None = None
    cells: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()
    with_row: bool = False

    def turn(self, number: int) -> Turn:
        """Return what is to be said of the Request at a place."""
        return self.turns[number] if self.turns else Turn({})

    @property
    def num_images(self) -> int:
        """Return how many pictures come of it."""
        return sum(request.batch for request in self.requests)


Fields = dict[str, object]


def translate(form: Form, body: Mapping[str, Json], house: House) -> Order:
    """Return the order that a body describes. Raises WireError."""
    order = _translate(form, body, house)
    args = order.given.items("script_args")
    if len(args) > MAX_ARGS:
        raise WireError.of_fields(Fault(("script_args",), f"at most {MAX_ARGS} arguments (given: {len(args)})"))
    first, title = order.requests[0], order.given.text("script_name").strip().lower()
    bare = {name: value for name, value in body.items() if name not in ("script_name", "script_args")}
    if form in SERIES.get(title, (None, ()))[1]:
        return _in_turns(order, make_series(title, _asked(order, bare, house), args), house)
    # A1111 parity: a plot's pictures share their seeds
    drawn: dict[str, Json] = {"seed": first.seed, "subseed": first.subseed}
    seeds = Seeds(house.draw, {name: order.given.whole(name) for name in drawn})
    plot = find_plot(form, title, {**bare, **drawn}, args, seeds)
    return order if plot is None else _plotted(order, plot, house)


def _asked(order: Order, body: Mapping[str, Json], house: House) -> Asked:
    """Return what a script is asked with. `body`: without the script."""
    given, first = order.given, order.requests[0]
    return Asked(
        body=body,
        args={},
        seed=first.seed,
        subseed=first.subseed,
        is_seeded=given.whole("seed") != -1,
        steps=_steps_done(given, first),
        denoise=given.number("denoising_strength"),
        num=given.whole("n_iter"),
        batch=given.whole("batch_size"),
        size=(first.width, first.height) if first.width and first.height else None,
        upscalers=[name for name in house.upscalers if not name.startswith("Latent")],
    )


def _steps_done(given: Given, first: Request) -> int:
    """Return how many steps are done of a picture that is changed. A1111 parity: the share that is drawn anew."""
    exact = first.init is not None and first.init.exact_steps
    share = 1.0 if exact else min(given.number("denoising_strength"), 0.999)
    return max(1, int(share * given.whole("steps")))


def _in_turns(order: Order, series: Series, house: House) -> Order:
    """Return the order of all of a series' drawings. Raises WireError where there are too many, before any is read."""
    if len(series.turns) > MAX_IMAGES:
        raise WireError(f"The script has {len(series.turns)} pictures; at most {MAX_IMAGES} are possible at once.")
    parts = [_translate(order.form, turn.body, house, turn.fields) for turn in series.turns]
    turns = tuple(turn for part, turn in zip(parts, series.turns, strict=True) for _ in part.requests)
    requests = tuple(request for part in parts for request in part.requests)
    warnings = (*series.warnings, *_warnings((order, *parts)))
    told = replace(order, requests=requests, turns=turns, with_row=series.with_row, warnings=warnings)
    return _checked(told, "The script")


def _checked(order: Order, what: str) -> Order:
    """Return the order. Raises WireError where it is of too many pictures."""
    if order.num_images > MAX_IMAGES:
        raise WireError(f"{what} has {order.num_images} pictures; at most {MAX_IMAGES} are possible at once.")
    return order


def _warnings(orders: Sequence[Order]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(warning for order in orders for warning in order.warnings))


def _plotted(order: Order, plot: Plot, house: House) -> Order:
    """Return the order of all of a plot's cells."""
    cells = [_translate(order.form, cell.body, house) for cell in plot.cells]
    requests = tuple(request for cell in cells for request in cell.requests)
    sizes = tuple(len(cell.requests) for cell in cells)
    plotted = replace(order, requests=requests, plot=plot, cells=sizes, warnings=_warnings((order, *cells)))
    return _checked(plotted, "The plot")


def _translate(form: Form, body: Mapping[str, Json], house: House, over: Mapping[str, object] | None = None) -> Order:
    """Return the order of a body without a script. `over`: fields of the Request, over what it is translated into."""
    legacy = legacy_names()
    body, doubts = filled(form, body, house)
    given = read_fields(FORMS[form], {name: value for name, value in body.items() if name not in legacy})
    override, notes = read_settings(_said(given.table("override_settings")), ("override_settings",))
    own = {**house.settings, **override}
    model = find_model(str(own.get(CHECKPOINT) or ""), house)
    vae, missing = find_vae(str(own.get("sd_vae") or ""), house)
    units, more = _units(form, body, given, house)
    fields: Fields = {
        **request_fields(own, ("init",) if form == "img2img" else ()),
        **{row.to: given.values[row.name] for row in FORMS[form] if row.to},
        "model": model,
        "vae": vae,
        "controls": [dict(own) for own in (*(unit.fields for unit in units), *(u.beside for u in units if u.beside))],
        **_names(given, house, own),
        **_size(given),
        **_noise(given, own),
        **_styles(given, house),
        **_PASSES[form](given, house),
        **_refiner(given, house, own),
    }
    scripts = translate_scripts(given.table("alwayson_scripts"), _drawing(given, fields))
    fields |= {**scripts.fields, **(over or {})}
    if given.flag("disable_extra_networks"):
        fields["prompt"] = cut_tags(given.text("prompt"))[0]
    if given.values["clip_skip"] is not None:
        fields["clip_skip"] = given.values["clip_skip"]
    warnings = (*doubts, *given.warnings, *notes, *missing, *scripts.warnings, *more)
    warnings = (*warnings, *_unadded(form, given, own), *(warning for unit in units for warning in unit.warnings))
    keep = {} if given.flag("override_settings_restore_afterwards") else _kept(override, model)
    return Order(form, _iterations(fields, given, house), given, own, units, tuple(dict.fromkeys(warnings)), keep)


def _drawing(given: Given, fields: Mapping[str, object]) -> Drawing:
    """Return how many steps are done, of a picture that is changed a share of them, and whether it is seamless."""
    steps, seamless = given.whole("steps"), bool(fields.get("seamless"))
    if "init.denoise" not in fields or fields.get("init.exact_steps"):
        return Drawing(steps, seamless)
    return Drawing(int(min(given.number("denoising_strength"), 0.999) * steps) + 1, seamless)


def _unadded(form: Form, given: Given, own: Mapping[str, Json]) -> tuple[str, ...]:
    """Return what is said of a setting of A1111's hires pass that is not carried out."""
    if form != "txt2img" or not given.flag("enable_hr") or not own.get("img2img_extra_noise"):
        return ()
    return ("img2img_extra_noise was passed over: a hires pass adds no more noise than its steps take away.",)


def _said(settings: Mapping[str, Json]) -> dict[str, Json]:
    """Return the settings that say something. A1111 parity: without a checkpoint the person's own stays."""
    return {name: value for name, value in settings.items() if value is not None and (name, value) != (CHECKPOINT, "")}


def _kept(settings: Mapping[str, Json], model: str) -> dict[str, Json]:
    """Return the settings of a request as they are kept: its checkpoint by our name for it."""
    return {**settings, CHECKPOINT: model} if CHECKPOINT in settings else dict(settings)


def find_model(name: str, house: House) -> str:
    """Return our name of a checkpoint; empty is the first. Raises WireError."""
    if not name:
        return house.models[0].name
    try:
        return find_named("model", name, house.models).name
    except UnknownName as error:
        raise WireError(f"model {shortened(name)} not found. {error}", 404) from None
    except RequestError as error:
        raise WireError(str(error)) from None


def find_vae(name: str, house: House) -> tuple[str | None, tuple[str, ...]]:
    """Return our name of a VAE, and what is said of one that is not here. A1111 parity: the model's own is used then.

    Automatic, and nothing: None; None: the model's own. Raises WireError where several have the name.
    """
    if name in ("", default_of("sd_vae")):
        return None, ()
    if name == "None":
        return OWN_VAE, ()
    try:
        return find_named("VAE", name, house.vaes).name, ()
    except UnknownName as error:
        return OWN_VAE, (f"VAE {shortened(name)} not found: the model's own is used. {error}",)
    except RequestError as error:
        raise WireError(str(error)) from None


def _units(form: Form, body: Mapping[str, Json], given: Given, house: House) -> tuple[tuple[Unit, ...], list[str]]:
    units, at = units_of(body)
    has_init, has_mask = form == "img2img", given.values.get("mask") not in (None, "")
    found = [
        (i, part, translate_unit(part, (*at, i), house.controls, has_init, has_mask))
        for i, unit in enumerate(units)
        for part in parts_of(unit)
    ]
    off = dict.fromkeys(
        f"The ControlNet unit {i} is off." for i, part, unit in found if unit is None and _has_image(part)
    )
    return tuple(unit for _, _, unit in found if unit is not None), list(off)


def _has_image(unit: Json) -> bool:
    return isinstance(unit, dict) and any(unit.get(name) for name in ("image", "input_image"))


def _names(given: Given, house: House, own: Mapping[str, Json]) -> Fields:
    name = given.text("sampler_name") or given.text("sampler_index")
    sampler, schedule = find_sampler(name, given.text("scheduler") or None, house)
    eta = given.values["eta"]
    if eta is None:
        setting = "eta_ddim" if sampler == "DDIM" else "eta_ancestral"
        eta = own[setting] if own.get(setting, default_of(setting)) != default_of(setting) else None
    return {"sampler": sampler, "schedule": schedule, "eta": eta}


def find_sampler(name: str, schedule: str | None, house: House) -> tuple[str, str]:
    """Return our names of a sampler and a scheduler. Raises WireError."""
    try:
        return house.names(name, schedule)
    except UnknownName as error:
        raise WireError(f"Sampler not found. {error}", 400) from None


def _floored(value: int) -> int:
    return value // 8 * 8  # A1111 parity: a latent's side is the picture's, divided by 8 and cut off


def _size(given: Given) -> Fields:
    sides = {name: given.values[name] for name in ("width", "height")}
    if given.values.get("firstphase_width") and given.values.get("firstphase_height") and given.flag("enable_hr"):
        sides = {"width": given.whole("firstphase_width"), "height": given.whole("firstphase_height")}
    return {name: _floored(value) if isinstance(value, int) else None for name, value in sides.items()}


def _noise(given: Given, own: Mapping[str, Json]) -> Fields:
    fields: Fields = {}
    for name, to in (
        ("s_churn", "churn"),
        ("s_tmin", "churn_min"),
        ("s_tmax", "churn_max"),
        ("s_noise", "churn_noise"),
    ):
        # A1111 parity: a setting that is not the default wins over the request
        if given.values[name] is not None and own.get(name, default_of(name)) == default_of(name):
            fields[to] = given.values[name]
    if given.values["tiling"] is not None:
        fields["seamless"] = given.values["tiling"]
    if given.values["s_min_uncond"] is not None:
        fields["negative_min"] = given.values["s_min_uncond"]
    seed_size = given.whole("seed_resize_from_w"), given.whole("seed_resize_from_h")
    if min(seed_size) > 0:
        fields["seed_width"], fields["seed_height"] = seed_size
    return fields


def _styles(given: Given, house: House) -> Fields:
    """Return the styles. A1111 parity: None, and nothing, is none, unless one has that name."""
    known = {name.lower(): name for name in house.styles}
    names = [name for name in given.items("styles") if str(name).lower() in known or name not in ("", "None")]
    for i, name in enumerate(names):
        if str(name).lower() not in known:
            unknown = UnknownName.of("style", str(name)[:100], house.styles)
            raise WireError.of_fields(Fault(("styles", i), str(unknown)))
    return {"styles": [known[str(name).lower()] for name in names]} if names else {}


def _hires(given: Given, house: House) -> Fields:
    if not given.flag("enable_hr"):
        return {}
    final = {"hires.width": given.whole("hr_resize_x"), "hires.height": given.whole("hr_resize_y")}
    if given.whole("firstphase_width") and given.whole("firstphase_height"):  # then width and height are the final ones
        final = {"hires.width": given.whole("width"), "hires.height": given.whole("height")}
    sampler, schedule = (_other(given, name) for name in ("hr_sampler_name", "hr_scheduler"))
    if sampler or schedule:
        first = given.text("sampler_name") or given.text("sampler_index")
        of_first = find_sampler(first, given.text("scheduler") or None, house)[1]
        found = find_sampler(sampler or first, schedule or of_first, house)  # A1111 parity: the first pass's schedule
        sampler, schedule = found[0] if sampler else None, found[1]
    model = _other(given, "hr_checkpoint_name")
    return {
        "hires.scale": given.number("hr_scale"),
        **{name: _floored(value) or None for name, value in final.items()},
        "hires.upscaler": _upscaler(given.text("hr_upscaler") or "Latent", house),
        "hires.denoise": given.number("denoising_strength"),
        "hires.steps": given.whole("hr_second_pass_steps") or None,
        "hires.sampler": sampler,
        "hires.schedule": schedule,
        "hires.cfg": given.values["hr_cfg"],
        "hires.prompt": given.text("hr_prompt") or None,
        "hires.negative": given.text("hr_negative_prompt") or None,
        "hires.model": find_model(model, house) if model else None,
    }


def _refiner(given: Given, house: House, own: Mapping[str, Json]) -> Fields:
    name = given.text("refiner_checkpoint").strip()
    if name.lower() in ("", "none"):
        return {}
    settings = ("refiner_switch_by_sample_steps", "hires_fix_refiner_pass")
    by_steps, passes = (own.get(setting, default_of(setting)) for setting in settings)
    return {
        "refiner.model": find_model(name, house),
        "refiner.at": given.number("refiner_switch_at"),
        "refiner.share": "steps" if by_steps else "noise",
        "refiner.passes": _REFINED[str(passes)],
    }


def _other(given: Given, name: str) -> str | None:
    """Return what a hires field says, None where it says to go on as before."""
    return None if given.text(name).strip().lower() in _SAME else given.text(name)


def _upscaler(name: str, house: House) -> str:
    by_lower = {known.lower(): known for known in house.upscalers}
    if name.lower() not in by_lower:
        known = UnknownName.of("upscaler", name[:100], house.upscalers)
        raise WireError(f"could not find upscaler named {shortened(name)}. {known}")
    return by_lower[name.lower()]


def _init(given: Given, house: House) -> Fields:
    images = given.items("init_images")
    if not images:
        raise WireError("Init image not found", 404)
    mask = read_image(given.values["mask"], ("mask",))
    blur = given.values["mask_blur"]
    fields: Fields = {
        "init.image": _picture(images[0], ("init_images", 0)),
        "init.denoise": given.number("denoising_strength"),
        "init.resize": _RESIZE[given.whole("resize_mode")],
    }
    if given.values["initial_noise_multiplier"] is not None:
        fields["init.noise"] = given.number("initial_noise_multiplier")
    if given.values["image_cfg_scale"] is not None:
        fields["image_cfg"] = given.number("image_cfg_scale")
    if mask is None:
        return fields
    return {
        **fields,
        "init.mask": mask,
        "init.invert": given.whole("inpainting_mask_invert") == 1,
        "init.mask_mode": "binary" if given.flag("mask_round") else "soft",
        "init.mask_blur": given.whole("mask_blur_x") if blur is None else blur,
        "init.mask_blur_y": given.whole("mask_blur_y") if blur is None else blur,
        "init.fill": FILL[given.whole("inpainting_fill")],
        "init.only_masked": given.flag("inpaint_full_res"),
        "init.padding": given.whole("inpaint_full_res_padding"),
    }


_PASSES: Mapping[Form, Callable[[Given, House], Fields]] = {"txt2img": _hires, "img2img": _init}


def _picture(image: Json, path: Path) -> str:
    found = read_image(image, path)
    if found is None:
        raise WireError.of_fields(Fault(path, "Init image not found: the picture is empty"))
    return found


def _iterations(fields: Fields, given: Given, house: House) -> tuple[Request, ...]:
    """Return a Request for every iteration; for every picture to change, where there are several."""
    batch, num = given.whole("batch_size"), given.whole("n_iter")
    images = given.items("init_images") if "init_images" in given.values else []
    if len(images) > 1:
        if len(images) > batch:
            at: Path = ("init_images",)
            message = f"bad number of images passed: {len(images)} for a batch_size of {batch}"
            raise WireError.of_fields(Fault(at, message))
        batch, num, fields = 1, num * len(images), {**fields, "batch": 1}
    if batch * num > MAX_IMAGES:
        message = f"at most {MAX_IMAGES} pictures at once are possible ({batch} x {num} were asked)"
        raise WireError.of_fields(Fault(("n_iter",), message))
    seed, subseed = (house.draw() if (s := given.whole(name)) == -1 else s for name in ("seed", "subseed"))
    varied = given.number("subseed_strength") > 0
    first = [
        {**fields, "seed": seed if varied else seed + i * batch, "subseed": subseed + i * batch} for i in range(num)
    ]
    if len(images) > 1:
        pictures = [_picture(image, ("init_images", i)) for i, image in enumerate(images)]
        first = [{**row, "init.image": pictures[i % len(pictures)]} for i, row in enumerate(first)]
    return tuple(_request(row) for row in first)


def _request(fields: Fields) -> Request:
    """Return the Request. Raises WireError in our fields' names: what got here is no single field of A1111's."""
    try:
        return make_request(nested(fields))
    except RequestError as error:
        raise WireError(str(error), 422) from error
