"""txt2img and img2img, and what is asked about them while they run: progress, interrupt, skip."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from disegno import __version__
from disegno.core.infotext import of_image, values_of, with_loras, write_infotext
from disegno.core.request import SEEDS, from_json
from disegno.core.request import Request as Asked
from disegno.serving.a1111 import answer as answers
from disegno.serving.a1111.answer import Drawn, Model
from disegno.serving.a1111.coerce import Json, coerced
from disegno.serving.a1111.errands import Errand, ended_early
from disegno.serving.a1111.front import Front, TimedRoute, asker, body_of, named_model
from disegno.serving.a1111.generation import Form, Order, translate
from disegno.serving.a1111.images import encode
from disegno.serving.a1111.pasted import UNITS
from disegno.serving.a1111.progress import Task, estimation, of_task, overall, pending
from disegno.serving.a1111.routes_extras import caption_of, require_captioner
from disegno.serving.a1111.routes_options import WARNINGS_HEADER
from disegno.serving.app import require_done
from disegno.serving.faults import Refused
from disegno.serving.jobs import Jobs
from disegno.serving.kinds import kinds_of
from disegno.serving.store import Job

# of a picture's labels: what the info has by itself
_NO_EXTRA = ("Schedule type", "Model", "Model hash", "VAE", "VAE hash", "Version")

router = APIRouter(route_class=TimedRoute, include_in_schema=False)


@router.post("/sdapi/v1/txt2img")
@router.post("/controlnet/txt2img")
async def txt2img(request: Request) -> Response:
    """Draw pictures from text."""
    return await _generate("txt2img", request)


@router.post("/sdapi/v1/img2img")
@router.post("/controlnet/img2img")
async def img2img(request: Request) -> Response:
    """Draw pictures from pictures."""
    return await _generate("img2img", request)


async def _generate(form: Form, request: Request) -> Response:
    front, owner = asker(request)
    house = await front.house(owner)
    order = await asyncio.to_thread(translate, form, await body_of(request), house)
    first = order.requests[0]
    described = sum(order.turn(n).described for n in range(len(order.requests)))
    if described:
        await require_captioner(front)
    passes = 2 if first.hires is not None and (first.init is None or first.init.denoise) else 1
    task_id = order.given.text("force_task_id")[:200]
    errand = front.errands.begin(owner, f"scripts_{form}", len(order.requests) + described, passes, task_id)
    drawn: list[Drawn] = []
    headers: dict[str, str] = {}
    try:
        await draw_order(front, errand, order, drawn, request)
    except Refused as refused:
        told = ended_early(refused, sum(len(one.pictures) for one in drawn), order.num_images, "drawn")
        order, headers = replace(order, warnings=(told, *order.warnings)), {WARNINGS_HEADER: json.dumps([told])}
    finally:
        front.errands.end(errand)
    if order.keep:
        front.keep_settings(owner, {**front.settings_of(owner), **order.keep})  # as they are by now
    model = model_of(front, order)
    kept = [one for n, one in enumerate(drawn) if order.turn(n).kept] or drawn[-1:]
    body = await asyncio.to_thread(answers.answer, order, kept, model, __version__, errand.timestamp)
    return JSONResponse(body, headers=headers)


async def draw_order(front: Front, errand: Errand, order: Order, drawn: list[Drawn], request: Request) -> None:
    """Draw one Request after the other, until all are drawn or the errand is interrupted. Raises Refused."""
    for n, asked in enumerate(order.requests):
        if order.turn(n).follows:
            asked = following(asked, drawn[-1])
        if order.turn(n).described:
            assert asked.init is not None
            words = await caption_of(front, errand, asked.init.image, request)
            asked = replace(asked, prompt=", ".join(part for part in (asked.prompt, words) if part))
        job = await front.errands.run_job(errand, "generate", asked, request.is_disconnected)
        if job is None:
            return
        drawn.append(await asyncio.to_thread(_read, front.jobs, require_done(job), order, order.turn(n).told))


def following(asked: Asked, before: Drawn) -> Asked:
    """Return a request that changes what was drawn before it, in its size."""
    assert asked.init is not None
    init = replace(asked.init, image=f"data:image/png;base64,{encode(before.pictures[0])}")
    return replace(asked, width=before.request.width, height=before.request.height, init=init)


def _read(jobs: Jobs, job: Job, order: Order, told: Mapping[str, Json]) -> Drawn:
    """Return what a job drew. `told`: entries of its text, over its own."""
    assert job.outcome is not None
    facts: dict[str, Any] = job.outcome.facts
    concrete = from_json(json.dumps(facts["request"]))
    content = {role: _contents(jobs, job, role) for role in ("image", "condition")}
    seeds = tuple(int(seed) for seed in facts["seeds"])
    subseeds = tuple((concrete.subseed + i) % SEEDS for i in range(len(seeds)))
    # each picture's own, with styles and wildcards written out
    prompts = tuple(facts["prompts"]) or (concrete.prompt,) * len(seeds)
    negatives = tuple(facts["negatives"]) or (concrete.negative,) * len(seeds)
    units = {f"{UNITS}{i}": unit.text for i, unit in enumerate(order.units)}
    labels = {name: label for name, label in facts["labels"].items() if not name.startswith(UNITS)}
    labels |= {**units, "Version": f"Disegno {__version__}"}
    said = {**labels, **_plain(told)}
    texts = [
        write_infotext(
            with_loras(prompts[i], concrete.loras),
            negatives[i],
            {**values_of(of_image(concrete, i), seed, subseeds[i], labels), **said},
        )
        for i, seed in enumerate(seeds)
    ]
    return Drawn(
        request=concrete,
        pictures=content["image"],
        infotexts=tuple(texts),
        seeds=seeds,
        subseeds=subseeds,
        maps=content["condition"],
        warnings=job.outcome.warnings,
        prompts=prompts,
        negatives=negatives,
        extra={name: value for name, value in said.items() if name not in _NO_EXTRA and value is not None},
        vae=labels.get("VAE"),
        vae_hash=labels.get("VAE hash"),
    )


def _plain(told: Mapping[str, Json]) -> dict[str, str | int | float | bool | None]:
    return {name: value for name, value in told.items() if not isinstance(value, list | dict)}


def _contents(jobs: Jobs, job: Job, role: str) -> tuple[bytes, ...]:
    assert job.outcome is not None
    return tuple(jobs.path(job, file.name).read_bytes() for file in job.outcome.files if file.role == role)


def model_of(front: Front, order: Order) -> Model:
    """Return the model that drew, by A1111's names: the file's name without its ending, and its short hash.

    Of a file that was taken away meanwhile, the name alone.
    """
    name = order.requests[0].model
    tags = (named_model(card).tag for card in front.jobs.catalogue.models if card.name == name)
    return Model(name, next(tags, ""))


# ---- how far it is


@router.get("/sdapi/v1/progress")
async def progress(request: Request) -> Response:
    """How far what runs is."""
    front, owner = asker(request)
    skip = request.query_params.get("skip_current_image", "false")
    without = bool(coerced(skip, "bool", ("query", "skip_current_image")))
    with_image = not without and bool(front.settings_of(owner).get("live_previews_enable", True))
    running = next((task for task in front.errands.tasks(owner) if task.state == "running"), None)
    return JSONResponse(overall(running or of_other_doors(front, owner), time.time(), with_image))


def of_other_doors(front: Front, owner: str) -> Task | None:
    """Return a job of the owner that runs and came through another door.

    No training and the like: it keeps no request waiting, and clients wait until nothing runs before they send one.
    """
    drawing = kinds_of("draw")
    for job, moved in front.jobs.running(owner=owner):
        if job.kind not in drawing:
            continue
        step, steps, stage = (moved.step, moved.num_steps, moved.stage) if moved else (0, 0, "")
        began = job.started or time.time()
        preview = moved.preview if moved else None
        return Task(job.id, job.kind, "running", 1, 0, step, steps, began, stage=stage, preview=preview)
    return None


@router.post("/sdapi/v1/interrupt")
async def interrupt(request: Request) -> Response:
    """End what runs, with the pictures as they stand."""
    front, owner = asker(request)
    await front.errands.interrupt(owner, all_of_it=True)
    return JSONResponse({})


@router.post("/sdapi/v1/skip")
async def skip(request: Request) -> Response:
    """End the iteration that runs; the next one goes on."""
    front, owner = asker(request)
    await front.errands.interrupt(owner, all_of_it=False)
    return JSONResponse(None)


@router.post("/internal/progress")
async def internal_progress(request: Request) -> Response:
    """How far one task is, by its id."""
    front, owner = asker(request)
    body = await body_of(request)
    task_id = coerced(body.get("id_task"), "str", ("id_task",))
    seen = coerced(body.get("id_live_preview"), "int", ("id_live_preview",))
    preview = coerced(body.get("live_preview"), "bool", ("live_preview",))
    told: dict[str, Json] = of_task(
        front.errands.tasks(owner),
        task_id if isinstance(task_id, str) else "",
        seen if isinstance(seen, int) else -1,
        preview is not False,
        time.time(),
    )
    return JSONResponse(told)


@router.get("/queue/status")
async def queue_status(request: Request) -> Response:
    """How many tasks wait, as gradio tells it."""
    front, owner = asker(request)
    return JSONResponse(estimation(front.errands.tasks(owner)))


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request) -> Response:
    """The tasks that wait."""
    front, owner = asker(request)
    return JSONResponse(pending(front.errands.tasks(owner)))
