"""Every control kind with every family: a control of another family is refused at once, in words that help."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus import headers
from disegno import ControlUnit, Settings, Studio
from disegno.backbones import miniature, miniature_sd2, miniature_sd3
from disegno.core.errors import WrongFamily

pytestmark = pytest.mark.contract

MAX_SECONDS = 0.1
REPEATS = 5  # the quickest counts: the machine may be busy with something else
CROSS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
MODELS = {
    "sd1": lambda path: miniature.write_sd1_checkpoint(path),
    "sd2": lambda path: miniature_sd2.write_checkpoint(path),
    "sd3": lambda path: miniature_sd3.write_file(path, encoders=()),
}
WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048, "diorama": 384}
SD3_CONTROL = {
    "pos_embed_input.proj.weight": (1536, 16, 2, 2),
    "controlnet_blocks.0.weight": (1536, 1536),
    "transformer_blocks.0.attn.add_q_proj.weight": (1536, 1536),
}


def _controls() -> Iterator[tuple[str, str, headers.Shapes]]:
    """Yield what a control is, its family, and the names and shapes of its file."""
    for family, width in WIDTHS.items():
        whole = headers.model(width) if width != WIDTHS["diorama"] else {f"model.diffusion_model.{CROSS}": (320, width)}
        yield "controlnet", family, headers.controlnet(width=width)
        yield "ctrlora-base", family, headers.ctrlora_base(width=width)
        yield "ctrlora", family, headers.ctrlora_condition(width=width)
        yield "unicontrol", family, whole | {"control_model.task_id_hypernet.0.weight": (1, 1)}
        yield "uni-controlnet", family, whole | {"local_adapter.x": (1,)}
        own = {f"control_model.{CROSS}": (64, width), "enc_zero_convs_out.0.0.weight": (1, 1, 1, 1)}
        yield "controlnet-xs", family, own
    yield "controlnet", "sd3", SD3_CONTROL


CONTROLS = {f"{kind} of {family}": (kind, family, shapes) for kind, family, shapes in _controls()}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("models")
    for name, write in MODELS.items():
        write(folder / f"{name}.safetensors")
    for name, (_, _, shapes) in CONTROLS.items():
        headers.write_header(folder / f"{name}.safetensors", shapes)
    cache = tmp_path_factory.mktemp("cache")
    return Studio(Settings(model_dirs=(folder,), cache_dir=cache, dtype="fp32", device="cpu"))


@pytest.mark.parametrize("model", MODELS)
def test_a_control_of_another_family_is_refused_at_once(studio: Studio, model: str) -> None:
    backbone = studio.backbone(model)
    cards = {card.path.stem: card for card in studio.library.cards("control")}
    tried = 0
    for name, (kind, family, _) in CONTROLS.items():
        assert (cards[name].mechanism, cards[name].family) == (kind, family), name
        if family == model:
            continue
        unit = ControlUnit(name=name, image=str(Path("any.png")))
        seconds = list[float]()
        for _ in range(REPEATS):
            began = time.perf_counter()
            with pytest.raises(WrongFamily) as refused:
                studio.controller(unit, backbone)
            seconds.append(time.perf_counter() - began)
        said = str(refused.value)
        assert all(word in said for word in (name, f"is for {family}", f"the open model is {model}", "Choose")), said
        assert min(seconds) < MAX_SECONDS, f"{name} on {model}: {min(seconds):.3f} s"
        tried += 1
    assert tried == len(CONTROLS) - sum(family == model for _, family, _ in CONTROLS.values()) >= 19
