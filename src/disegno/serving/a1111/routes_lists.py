"""What A1111's clients ask the server about itself: models, samplers, styles, scripts, memory ..."""

import platform
import sys
from contextlib import suppress
from typing import cast

import psutil
from fastapi import APIRouter, Request
from pydantic_core import from_json
from starlette.responses import JSONResponse, Response

from disegno import __version__
from disegno.serving.a1111.always_on import ALWAYS_ON
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.front import (
    LATENT_MODES,
    TimedRoute,
    asker,
    named_model,
    named_vaes,
    names_of,
    upscaler_names,
)
from disegno.serving.a1111.generation import FORMS
from disegno.serving.a1111.names import sampler_rows, scheduler_rows
from disegno.serving.a1111.options import a1111_flags
from disegno.serving.a1111.script_args import rows_of
from disegno.serving.a1111.scripts import titles
from disegno.serving.words import Catalogue, WeightsCard

router = APIRouter(route_class=TimedRoute, include_in_schema=False)
API = "/sdapi/v1"


async def _catalogue(request: Request) -> Catalogue:
    return await asker(request)[0].catalogue()


@router.get(f"{API}/samplers")
async def samplers(request: Request) -> Response:
    """The samplers, with their aliases."""
    return JSONResponse(sampler_rows(names_of(await _catalogue(request)).samplers))


@router.get(f"{API}/schedulers")
async def schedulers(request: Request) -> Response:
    """The schedules."""
    return JSONResponse(scheduler_rows(names_of(await _catalogue(request)).schedules))


@router.get(f"{API}/upscalers")
async def upscalers(request: Request) -> Response:
    """What enlarges pictures."""
    names = upscaler_names(await _catalogue(request), latent=False)
    shared = {"model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    return JSONResponse([{"name": name, **shared} for name in names])


@router.get(f"{API}/latent-upscale-modes")
async def latent_upscale_modes() -> Response:
    """What enlarges latents."""
    return JSONResponse([{"name": name} for name in LATENT_MODES])


@router.get(f"{API}/sd-models")
async def sd_models(request: Request) -> Response:
    """The models."""
    named = [named_model(card) for card in (await _catalogue(request)).models]
    return JSONResponse(
        [
            {
                "title": model.title,
                "model_name": model.name,
                "hash": model.tag or None,
                "sha256": model.sha256 or None,
                "filename": model.file or model.name,
                "config": None,
            }
            for model in named
        ]
    )


@router.get(f"{API}/sd-vae")
async def sd_vae(request: Request) -> Response:
    """The VAEs."""
    named = named_vaes(await _catalogue(request))
    return JSONResponse([{"model_name": vae.title, "filename": vae.file or vae.name} for vae in named])


@router.get(f"{API}/hypernetworks")
@router.get(f"{API}/face-restorers")
@router.get(f"{API}/realesrgan-models")
async def nothing() -> Response:
    """What does not exist here: an empty list."""
    return JSONResponse([])


@router.get(f"{API}/prompt-styles")
async def prompt_styles(request: Request) -> Response:
    """The styles."""
    styles = (await _catalogue(request)).styles
    return JSONResponse([{"name": s.name, "prompt": s.prompt, "negative_prompt": s.negative} for s in styles])


def _files(catalogue: Catalogue, kind: str) -> list[WeightsCard]:
    return [card for card in catalogue.files if card.kind == kind]


@router.get(f"{API}/loras")
async def loras(request: Request) -> Response:
    """The LoRAs."""
    cards = _files(await _catalogue(request), "lora")
    return JSONResponse([lora_row(card) for card in cards])


def lora_row(card: WeightsCard) -> dict[str, Json]:
    """Return a LoRA as A1111 lists it: what of its header is an object is told as one. A1111 parity."""
    metadata: dict[str, Json] = {name: _told(word) for name, word in card.metadata.items()}
    return {"name": card.name, "alias": card.name, "path": card.file or card.name, "metadata": metadata}


def _told(word: str) -> Json:
    if word.startswith("{"):
        with suppress(ValueError):
            return cast(Json, from_json(word, allow_inf_nan=False))
    return word


@router.get(f"{API}/embeddings")
async def embeddings(request: Request) -> Response:
    """The embeddings that prompts may name."""
    cards = _files(await _catalogue(request), "embedding")
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    rows = {c.name: {**unknown, "shape": c.vectors[1], "vectors": c.vectors[0]} for c in cards if c.vectors}
    return JSONResponse({"loaded": rows, "skipped": {}})


@router.post(f"{API}/refresh-checkpoints")
@router.post(f"{API}/refresh-vae")
@router.post(f"{API}/refresh-loras")
@router.post(f"{API}/refresh-embeddings")
async def refresh(request: Request) -> Response:
    """Look at the model folders again."""
    await asker(request)[0].look()
    return JSONResponse(None)


@router.post(f"{API}/unload-checkpoint")
async def unload(request: Request) -> Response:
    """Let go of the models and give their memory back."""
    await asker(request)[0].jobs.dispatcher.unload()
    return JSONResponse({})


@router.post(f"{API}/reload-checkpoint")
async def reload() -> Response:
    """Nothing needs to be done: a model that was let go is opened by the next request that wants it."""
    return JSONResponse({})


@router.get(f"{API}/cmd-flags")
async def cmd_flags(request: Request) -> Response:
    """A1111's command-line flags, as this server would have them. No secrets, no paths."""
    settings = asker(request)[0].jobs.settings
    return JSONResponse({**a1111_flags(), "api": True, "port": settings.port})


@router.get(f"{API}/scripts")
async def scripts() -> Response:
    """The scripts' titles, in lower case."""
    return JSONResponse({form: [*titles(form), *ALWAYS_ON] for form in FORMS})


@router.get(f"{API}/script-info")
async def script_info() -> Response:
    """The scripts, which of them are always on, and their arguments."""
    return JSONResponse(
        [
            {"name": name, "is_alwayson": name in ALWAYS_ON, "is_img2img": form == "img2img", "args": rows_of(name)}
            for form in FORMS
            for name in (*titles(form), *ALWAYS_ON)
        ]
    )


@router.get(f"{API}/extensions")
async def extensions() -> Response:
    """The one extension that clients look for; it is built in."""
    row = {"name": "sd-webui-controlnet", "remote": "", "branch": "", "commit_hash": "", "commit_date": 0}
    return JSONResponse([{**row, "version": __version__, "enabled": True}])


@router.get(f"{API}/memory")
async def memory() -> Response:
    """The machine's memory."""
    ram = psutil.virtual_memory()
    used = psutil.Process().memory_info().rss
    return JSONResponse(
        {
            "ram": {"free": ram.available, "used": used, "total": ram.total},
            "cuda": {"error": "the model's process holds the GPU, if there is one"},
        }
    )


@router.post(f"{API}/create/embedding")
@router.post(f"{API}/create/hypernetwork")
@router.post(f"{API}/train/embedding")
@router.post(f"{API}/train/hypernetwork")
async def train() -> Response:
    """A1111's trainings do not exist here: this says what does."""
    raise WireError("Embeddings and hypernetworks are not trained here; `disegno teach` trains controls.", 404)


@router.get("/internal/ping")
@router.get("/login_check")
async def ping() -> Response:
    """Whoever gets here may come in."""
    return JSONResponse({})


@router.get("/internal/sysinfo")
async def sysinfo() -> Response:
    """The platform and the version."""
    told = {"Platform": platform.platform(), "Python": platform.python_version(), "Version": __version__}
    return JSONResponse(
        {**told, "CPU": {"count logical": psutil.cpu_count()}, "Bits": 64 if sys.maxsize > 2**32 else 32}
    )
