"""The routes of A1111's ControlNet extension: what can be chosen, and drawings made on their own."""

import asyncio
from typing import cast

from fastapi import APIRouter, Request
from PIL import Image
from pydantic_core import from_json
from starlette.responses import JSONResponse, Response

from disegno.core.errors import UnknownName
from disegno.engine.album import INPAINT
from disegno.serving.a1111.coerce import Json, coerced
from disegno.serving.a1111.control_types import TAGS, control_type
from disegno.serving.a1111.controlnet import MAX_UNITS
from disegno.serving.a1111.errands import ended_early
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.fields import Field, Given, read_fields
from disegno.serving.a1111.files import png_of
from disegno.serving.a1111.front import TimedRoute, asker, body_of, named_controls
from disegno.serving.a1111.images import encode, read_image
from disegno.serving.a1111.modules import Module, find_module, module_list, modules
from disegno.serving.a1111.poses import MAX_POSES, draw_pose, read_pose
from disegno.serving.app import require_done
from disegno.serving.faults import Refused
from disegno.serving.kinds import AnnotateRequest

router = APIRouter(route_class=TimedRoute, include_in_schema=False, prefix="/controlnet")

DETECT = (
    Field("controlnet_module", "str", "none"),
    Field("controlnet_input_images", "list"),
    Field("controlnet_images", "list"),
    Field("controlnet_processor_res", "float", -1),
    Field("controlnet_threshold_a", "float", -1),
    Field("controlnet_threshold_b", "float", -1),
    Field("controlnet_masks", "list", None, unused="no module here needs a mask", off=([],)),
    Field("low_vram", "bool", False, unused="the program decides itself what is kept in memory"),
)
"""The body of detect. `controlnet_images` is the older name, which webuiapi sends."""
MAX_IMAGES = 64


@router.get("/version")
async def version() -> Response:
    """The version of the extension's API."""
    return JSONResponse({"version": 3})


@router.get("/settings")
async def settings() -> Response:
    """How many units a request may have, by the setting's present and former name."""
    return JSONResponse({"control_net_unit_count": MAX_UNITS, "control_net_max_models_num": MAX_UNITS})


@router.get("/model_list")
async def model_list(request: Request) -> Response:
    """The controls; `update`: look at the folders again first."""
    front, _ = asker(request)
    if coerced(request.query_params.get("update"), "bool", ("query", "update")):
        await front.look()
    names = [control.title for control in named_controls(await front.catalogue())]
    return JSONResponse({"model_list": ["None", *names]})


@router.get("/module_list")
async def list_modules(request: Request) -> Response:
    """The annotators, with their sliders; `alias_names`: by the labels that forms show."""
    labels = coerced(request.query_params.get("alias_names"), "bool", ("query", "alias_names"))
    return JSONResponse(await asyncio.to_thread(module_list, bool(labels)))


@router.get("/control_types")
async def control_types(request: Request) -> Response:
    """The types of control, with their modules and models."""
    names = [control.title for control in named_controls(await asker(request)[0].catalogue())]
    rows = [(module.known.label, module.known.tags) for module in await asyncio.to_thread(modules)]
    return JSONResponse({"control_types": {tag: control_type(tag, rows, names) for tag in TAGS}})


@router.post("/detect")
async def detect(request: Request) -> Response:
    """Draw what a module sees in some pictures."""
    given = read_fields(DETECT, await body_of(request))
    module = _module(given.text("controlnet_module"))
    if module.annotator == INPAINT:
        raise WireError(f"Module not supported: {module.known.name} draws nothing, a control is told what to fill.")
    name = "controlnet_input_images" if given.items("controlnet_input_images") else "controlnet_images"
    images = given.items(name)
    if not images:
        raise WireError("No image selected")
    if len(images) > MAX_IMAGES:
        raise WireError(f"At most {MAX_IMAGES} images at once (given: {len(images)}).")
    asked = [annotation_of(given, module, image, (name, i)) for i, image in enumerate(images)]
    front, owner = asker(request)
    errand = front.errands.begin(owner, "detect", len(asked))
    drawings: list[Json] = []
    warnings: list[Json] = [*given.warnings]
    try:
        for one in asked:
            job = await front.errands.run_job(errand, "annotate", one, request.is_disconnected)
            if job is None:
                break
            job = require_done(job)
            assert job.outcome is not None
            file = front.jobs.path(job, job.outcome.files[0].name)
            drawings.append(encode(await asyncio.to_thread(file.read_bytes)))
    except Refused as refused:
        warnings.insert(0, ended_early(refused, len(drawings), len(asked), "drawn"))
    finally:
        front.errands.end(errand)
    body: dict[str, Json] = {"images": drawings, "info": "Success"}
    return JSONResponse(body | ({"warnings": warnings} if warnings else {}))


def _module(name: str) -> Module:
    try:
        return find_module(name or "none")
    except UnknownName as error:
        raise WireError(f"Module not available. {error}") from None


def annotation_of(given: Given, module: Module, image: Json, path: tuple[str | int, ...]) -> AnnotateRequest:
    """Return the drawing that a body of detect asks for of one picture. Raises WireError."""
    picture = read_image(image, path)
    if picture is None:
        raise WireError("No image selected")
    thresholds = (given.number("controlnet_threshold_a"), given.number("controlnet_threshold_b"))
    draws = module.control is None and module.beside is None  # else the thresholds are a control's
    return AnnotateRequest(
        name=module.annotator,
        image=picture,
        params=module.params(*thresholds) if draws else {},
        resolution=module.resolution(given.number("controlnet_processor_res")),
        back=False,
    )


@router.post("/render_openpose_json")
async def render_openpose_json(request: Request) -> Response:
    """Draw poses from their keypoints."""
    poses = await _list_of(request)
    if not poses:
        return JSONResponse({"info": "No pose data detected."})
    if len(poses) > MAX_POSES:
        raise WireError(f"At most {MAX_POSES} poses at once (given: {len(poses)}).")
    return JSONResponse(await asyncio.to_thread(_rendered, poses))


async def _list_of(request: Request) -> list[Json]:
    try:
        poses = from_json(await request.body() or b"[]", allow_inf_nan=False)
    except ValueError as error:
        raise WireError(f"The body is not JSON: {str(error)[:100]}.", 400) from None
    if not isinstance(poses, list):
        raise WireError("The body must be a list of poses.")
    return cast("list[Json]", poses)


def _rendered(poses: list[Json]) -> dict[str, Json]:
    drawn = (draw_pose(read_pose(pose, (i,))) for i, pose in enumerate(poses))
    return {"images": [encode(png_of(Image.fromarray(canvas))) for canvas in drawn], "info": "Success"}
