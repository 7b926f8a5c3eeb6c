"""Every kind of file with every family: what is of another family is refused at once, in words that help.

Controls and LoRAs on models, and models opened as another family: each family of files with all the others.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corpus import headers
from disegno import ControlUnit, Settings, Studio
from disegno.backbones import BACKBONES, miniature, miniature_sd2, miniature_sd3, miniature_sdxl
from disegno.core.errors import WrongFamily
from disegno.core.request import LoraUse
from disegno.memory import FULL_PRECISION, Memory

pytestmark = pytest.mark.contract

MAX_SECONDS = 0.1
REPEATS = 5  # the quickest counts: the machine may be busy with something else
CROSS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
MODELS = {
    "sd1": lambda path: miniature.write_sd1_checkpoint(path),
    "sd2": lambda path: miniature_sd2.write_checkpoint(path),
    "sdxl": lambda path: miniature_sdxl.write_file(path),
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
        yield "control-lora", family, {"lora_controlnet": (0,), f"{CROSS.removesuffix('.weight')}.down": (64, width)}
        yield "ip-adapter", family, {"image_proj.proj.weight": (4, 4), "ip_adapter.1.to_k_ip.weight": (320, width)}
    yield "controlnet", "sd3", SD3_CONTROL
    for family, block in (("sd1", "input_blocks_1_1"), ("sdxl", "input_blocks_7_1_transformer_blocks_1")):
        yield "controlnet-lllite", family, {f"lllite_unet_{block}_attn1_to_q.down.0.weight": (64, 640)}
    yield "controlnet-union", "sdxl", {"task_embedding": (8, 320), "down_blocks.1.attn2.to_k.weight": (640, 2048)}
    for family, pixels in (("sd1", 192), ("sdxl", 768)):
        yield "t2i-adapter", family, {"conv_in.weight": (320, pixels, 3, 3), "body.0.block1.weight": (320, 320, 3, 3)}


CONTROLS = {f"{kind} of {family}": (kind, family, shapes) for kind, family, shapes in _controls()}

LORAS = {
    **{family: headers.lora(width, modules=4) for family, width in WIDTHS.items()},
    "sd3": {
        "lora_unet_joint_blocks_3_x_block_attn_qkv.lora_down.weight": (16, 1536),
        "lora_unet_joint_blocks_3_x_block_attn_qkv.lora_up.weight": (4608, 16),
    },
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("models")
    for name, write in MODELS.items():
        write(folder / f"{name}.safetensors")
    for name, (_, _, shapes) in CONTROLS.items():
        headers.write_header(folder / f"{name}.safetensors", shapes)
    for family, shapes in LORAS.items():
        headers.write_header(folder / f"lora of {family}.safetensors", shapes)
    cache = tmp_path_factory.mktemp("cache")
    return Studio(Settings(model_dirs=(folder,), cache_dir=cache, dtype="fp32", device="cpu"))


@pytest.mark.parametrize("model", [*MODELS, "diorama"])
def test_a_control_of_another_family_is_refused_at_once(studio: Studio, model: str) -> None:
    backbone = studio.backbone(model)
    cards = {card.path.stem: card for card in studio.library.cards("control")}
    tried = 0
    for name, (kind, family, _) in CONTROLS.items():
        assert (cards[name].mechanism, cards[name].family) == (kind, family), name
        if family == model:
            continue
        unit = ControlUnit(name=name, image=str(Path("any.png")))
        said = _refused(lambda unit=unit: studio.controller(unit, backbone), name)
        assert all(word in said for word in (name, f"is for {family}", f"the open model is {model}", "Choose")), said
        tried += 1
    assert tried == len(CONTROLS) - sum(family == model for _, family, _ in CONTROLS.values()) >= 19


@pytest.mark.parametrize("model", [*MODELS, "diorama"])
def test_a_lora_of_another_family_is_refused_at_once(studio: Studio, model: str) -> None:
    backbone = studio.backbone(model)
    cards = {card.path.stem: card.family for card in studio.library.cards("lora")}
    others = [family for family in LORAS if family != model]
    assert len(others) == 4
    for family in others:
        name = f"lora of {family}"
        assert cards[name] == family
        said = _refused(lambda name=name: studio.loras(backbone, [LoraUse(name=name)]), name)
        assert all(word in said for word in (name, f"is for {family}", f"the open model is {model}", "Choose")), said


FOLDERS = {
    "sd1": lambda path: miniature.write_sd1_folder(path),
    "sd2": lambda path: miniature_sd2.write_folder(path),
    "sdxl": lambda path: miniature_sdxl.write_folder(path),
    "sd3": lambda path: miniature_sd3.write_folder(path, encoders=()),
}


def test_a_model_opened_as_another_family_is_refused_at_once(tmp_path: Path) -> None:
    memory, tried = Memory(FULL_PRECISION), 0
    for family, write in MODELS.items():
        file = write(tmp_path / f"{family}.safetensors")
        for other in MODELS.keys() - {family}:
            said = _refused(
                lambda file=file, other=other: BACKBONES.load(other).open(file, memory), f"{family}, {other}"
            )
            assert f"is for {family}, not for {other}" in said and f"Open it as {family}." in said
            tried += 1
    for family, write in FOLDERS.items():
        folder = write(tmp_path / family)
        for other in MODELS.keys() - {family}:
            said = _refused(
                lambda folder=folder, other=other: BACKBONES.load(other).open(folder, memory), f"{family}, {other}"
            )
            assert f"is for {family}, not for {other}" in said and f"Open it as {family}." in said
            tried += 1
    assert tried == 12 + 12


def _refused(do: Callable[[], object], what: str) -> str:
    """Return what is said; it is said within MAX_SECONDS."""
    seconds, said = list[float](), ""
    for _ in range(REPEATS):
        began = time.perf_counter()
        with pytest.raises(WrongFamily) as refused:
            do()
        seconds.append(time.perf_counter() - began)
        said = str(refused.value)
    assert min(seconds) < MAX_SECONDS, f"{what}: {min(seconds):.3f} s"
    return said
