"""A style LoRA, taught as a person does it: under every kind of net, from pictures alone, ended and gone on with."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import UNet2DConditionModel
from PIL import Image

from disegno import Settings
from disegno.backbones import miniature, miniature_sd2, miniature_sd3, miniature_sdxl
from disegno.cli.main import main
from disegno.core.teach import make_teach_request
from disegno.training.base import Look, TeachProgress, TeachResult
from disegno.training.convergence import EFFECT
from disegno.training.miniature import Discs
from disegno.training.stopping import Stop
from disegno.training.teach import teach
from disegno.weights.identify import identify
from disegno.weights.load import load_file

pytestmark = pytest.mark.e2e

SMALL = ("--width", "64", "--height", "64", "--rank", "4", "--rate", "0.02", "--data", "photos", "--recipe", "lora")
FAMILIES = {"sd1": "mini", "sd2": "two", "sdxl": "xl", "sd3": "three", "diorama": "diorama"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with models, and with pictures that no drawing belongs to, in which commands run."""
    place, discs = tmp_path_factory.mktemp("style"), Discs(12)
    miniature.write_sd1_folder(place / "models" / "mini")
    miniature_sd2.write_folder(place / "models" / "two", prediction="epsilon")
    miniature_sdxl.write_folder(place / "models" / "xl")
    miniature_sd3.write_folder(place / "models" / "three", encoders=("clip_l", "clip_g"))
    (place / "photos").mkdir()
    for index in range(len(discs)):
        sample = discs.read(index)
        Image.fromarray(sample.target).save(place / "photos" / f"{index}.png")
        (place / "photos" / f"{index}.txt").write_text(sample.caption, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DISEGNO_MODEL_DIRS", str(place / "models"))
        patch.setenv("DISEGNO_CACHE_DIR", str(place / "cache"))
        patch.setenv("DISEGNO_DTYPE", "fp32")
        yield place


def disegno(*words: str) -> Result:
    done = CliRunner().invoke(main, words)
    assert "Traceback" not in done.output
    return done


def _drawn(place: Path, model: str, prompt: str) -> bytes:
    words = ("generate", prompt, "--model", model, "--size", "64x64", "--steps", "2", "--seed", "1", "-o", "out.png")
    done = disegno(*words)
    assert done.exit_code == 0, done.output
    with Image.open(place / "out.png") as picture:
        return picture.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_taught_found_by_its_name_and_drawn_with(place: Path, family: str) -> None:
    model, name = FAMILIES[family], f"blobs-{family}"
    done = disegno("teach", name, "--model", model, *SMALL, "--steps", "3", "--validate-every", "0")
    assert done.exit_code == 0 and f"<lora:{name}:1>" in done.output, done.output
    file = place / "models" / "loras" / f"{name}.safetensors"
    card = identify(file)
    assert (card.kind, card.mechanism, card.family, card.rank) == ("lora", "lora", family, 4)
    assert card.layout == ("peft" if family == "sd3" else "kohya")
    assert _drawn(place, model, f"a disc <lora:{name}:1>") != _drawn(place, model, "a disc")
    assert _drawn(place, model, f"a disc <lora:{name}:0>") == _drawn(place, model, "a disc")


def test_diffusers_reads_it_as_it_is_drawn_with_here(place: Path) -> None:
    from disegno.backbones import sd1
    from disegno.core.request import LoraUse
    from disegno.diffusion.call import Call, Row
    from disegno.loras.apply import Worn, put_on
    from disegno.loras.files import read_lora
    from disegno.memory import FULL_PRECISION, Memory

    done = disegno("teach", "read", "--model", "mini", *SMALL, "--alpha", "2", "--steps", "3", "--validate-every", "0")
    assert done.exit_code == 0, done.output
    file = place / "models" / "loras" / "read.safetensors"
    backbone = sd1.open(place / "models" / "mini", Memory(FULL_PRECISION))
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    tokens = backbone.encode_text(["a disc"]).tokens
    call = Call(x, t, tokens, (Row(0, positive=True, text="", progress=0.0),), backbone.evaluate)
    with put_on(backbone.lora_nets, [Worn(read_lora(identify(file)), LoraUse(name="read"))]).on("unet"):
        ours = call.run()
    theirs = UNet2DConditionModel.from_pretrained(place / "models" / "mini" / "unet")
    theirs.load_lora_adapter(_for_diffusers(load_file(file), theirs), prefix=None)
    with torch.no_grad():
        assert torch.allclose(ours, theirs(x, t, tokens).sample, atol=1e-5)
    assert not torch.allclose(ours, call.run(), atol=1e-3)


def _for_diffusers(tensors: dict[str, torch.Tensor], net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return kohya's names as peft's: alpha is the rank here."""
    named = {name.replace(".", "_"): name for name, _ in net.named_modules()}
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    found: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        stem, _, end = key.removeprefix("lora_unet_").partition(".")
        if end in ends:
            found[f"{named[stem]}.{ends[end]}"] = tensor
        else:
            assert end == "alpha" and float(tensor) == 4
    return found


def test_it_is_looked_at_and_a_report_shows_it(place: Path) -> None:
    done = disegno("teach", "seen", *SMALL, "--steps", "4", "--validate-every", "2", "--holdout", "2")
    assert done.exit_code == 0, done.output
    run = place / "runs" / "seen"
    assert {path.name for path in (run / "looks").iterdir()} == {f"step-00000{n}.png" for n in (0, 2, 4)}
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text("utf-8").splitlines()]
    effects = [line["metrics"][EFFECT] for line in lines if "metrics" in line]
    assert effects[0] == 0 and effects[-1] > 0.004
    page = (run / "report.html").read_text("utf-8")
    assert "Pictures at step 4" in page and "with the LoRA, without it from the same seeds" in page


def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(place: Path) -> None:
    fields = {
        "name": "cut", "data": ["photos"], "recipe": "lora", "model": "mini", "width": 64, "height": 64, "rank": 4,
        "lora_dropout": 0.3, "steps": 6, "save_every": 2, "validate_every": 0,
    }  # fmt: skip
    request, settings = make_teach_request(fields), Settings(model_dirs=(place / "models",), dtype="fp32")
    whole = list(teach(request, settings, place / "whole"))
    stop = Stop()
    for event in teach(request, settings, place / "cut", stop=stop):
        if isinstance(event, TeachProgress) and event.stage == "teaching" and event.step >= 3:
            stop.ask()
    last = list(teach(request, settings, place / "cut"))[-1]
    assert isinstance(last, TeachResult) and last.step == 6 and not any(isinstance(each, Look) for each in whole)
    assert (place / "cut/cut.safetensors").read_bytes() == (place / "whole/cut.safetensors").read_bytes()


def test_another_begins_from_it_and_foreign_ones_are_refused(place: Path) -> None:
    words = (*SMALL, "--model", "mini", "--steps", "1", "--validate-every", "0", "--rate", "1e-9")
    assert disegno("teach", "first", *SMALL, "--model", "mini", "--steps", "2", "--validate-every", "0").exit_code == 0
    assert disegno("teach", "second", *words, "--start", "first").exit_code == 0
    a, b = (load_file(place / f"models/loras/{name}.safetensors") for name in ("first", "second"))
    assert a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    other = disegno("teach", "third", *words[:4], "--rank", "8", *words[6:], "--start", "first")
    assert other.exit_code == 3 and "have no place in matrices of rank 8" in other.output
    model = disegno("teach", "fourth", *words, "--start", str(place / "models/mini"))
    assert model.exit_code == 3 and "goes on from a LoRA alone" in model.output, model.output
    taken = disegno("teach", "first", *words, "--run", "elsewhere")
    assert taken.exit_code == 2 and "There is a LoRA of this name" in taken.output
