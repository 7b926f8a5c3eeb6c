"""What a picture's text calls the files that drew it, and its controls: names and hashes as A1111 writes them."""

from collections.abc import Mapping, Sequence

from disegno.core.infotext import unit_text
from disegno.diffusion.schedules import AUTOMATIC, SCHEDULES
from disegno.engine.guiding import edits
from disegno.engine.phases import Job
from disegno.engine.runs import inpaints
from disegno.engine.studio import BUILT_IN
from disegno.engine.units import Prepared
from disegno.engine.wording import Encoded
from disegno.loras.apply import Loras
from disegno.samplers.catalogue import find_sampler
from disegno.text.learnt import LearntVectors

_MODEL_DIGITS, _FILE_DIGITS = 10, 12  # A1111 parity


def labels_of(job: Job, told: Encoded | None, controls: Sequence[Prepared]) -> dict[str, str]:
    """Return what is known of a generation's files by A1111's names. `controls`: those that acted."""
    request = job.request
    units = [(request.controls[prepared.place], prepared) for prepared in controls]
    return {
        **_schedule(request.sampler or "", request.schedule or ""),
        **_model(job),
        **_vae(job),
        **_refiner(job),
        **_seen(job),
        **({} if told is None else {**_loras([*told.loras, *told.texts.loras()]), **_learnt(told.learnt)}),
        **{f"ControlNet {i}": unit_text(unit, prepared.annotator) for i, (unit, prepared) in enumerate(units)},
    }


def _schedule(sampler: str, schedule: str) -> dict[str, str]:
    """Return the schedule by its own name. A1111 parity: Automatic stands only where a sampler has none of its own."""
    own = find_sampler(sampler).default_schedule
    return {"Schedule type": SCHEDULES[own].label} if own and schedule == AUTOMATIC.label else {}


def _model(job: Job) -> dict[str, str]:
    card = job.studio.find_model(job.request.model)
    if card is None:
        return {"Model": BUILT_IN}
    return {"Model hash": job.studio.library.sha256(card)[:_MODEL_DIGITS], "Model": card.called}


def _vae(job: Job) -> dict[str, str]:
    """Return what is said of a VAE that is not the model's own. A1111 parity: its file's whole name."""
    studio, request = job.studio, job.request
    card = studio.find_vae(request.vae, studio.find_model(request.model))
    if card is None:
        return {}
    return {"VAE hash": studio.library.sha256(card)[:_MODEL_DIGITS], "VAE": card.file_name}


def _refiner(job: Job) -> dict[str, str]:
    """Return what is said of a model that took over."""
    refiner = job.request.refiner
    if refiner is None:
        return {}
    card = job.studio.find_model(refiner.model)
    digits = "" if card is None else f" [{job.studio.library.sha256(card)[:_MODEL_DIGITS]}]"
    return {"Refiner": (BUILT_IN if card is None else card.called) + digits}


def _seen(job: Job) -> dict[str, str]:
    """Return how closely a model that is shown the picture kept to it."""
    init = job.request.init
    if init is None:
        return {}
    if edits(job.backbone):
        return {"Image CFG scale": str(job.request.image_cfg)}
    return {"Conditional mask weight": str(init.mask_weight)} if inpaints(job.backbone) else {}


def _loras(loras: Sequence[Loras]) -> Mapping[str, str]:
    hashes = {name: sha256 for some in loras for name, sha256 in some.hashes.items()}
    return _listed("Lora hashes", hashes)


def _learnt(learnt: Sequence[LearntVectors]) -> Mapping[str, str]:
    return _listed("TI hashes", {each.name: each.sha256 for each in learnt})


def _listed(name: str, hashes: Mapping[str, str]) -> Mapping[str, str]:
    return {name: ", ".join(f"{key}: {value[:_FILE_DIGITS]}" for key, value in hashes.items())} if hashes else {}
