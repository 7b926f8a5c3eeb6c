"""Teaching under Stable Diffusion XL as a person does it, on the miniature: every recipe, ended and gone on with."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from disegno import Settings
from disegno.backbones import miniature_sdxl as mini
from disegno.cli.main import main
from disegno.core.teach import TeachRequest, make_teach_request
from disegno.training.base import TeachProgress, TeachResult
from disegno.training.miniature import Discs, write_base
from disegno.training.stopping import Stop
from disegno.training.teach import teach
from disegno.weights.identify import identify
from disegno.weights.load import load_file, open_file

pytestmark = pytest.mark.e2e

SMALL = ("--width", "64", "--height", "64", "--steps", "4", "--save-every", "1")
MECHANISMS = {
    "base": "ctrlora-base",
    "ctrlora": "ctrlora",
    "full": "ctrlora-full",
    "controlnet": "controlnet",
    "t2i": "t2i-adapter",
    "xs": "controlnet-xs",
}


def _write_pairs(folder: Path, outline: bool) -> None:
    discs, lines = Discs(24, outline=outline), list[str]()
    for part in ("source", "target"):
        (folder / part).mkdir(parents=True)
    for index in range(len(discs)):
        sample, name = discs.read(index), f"{discs.key(index)}.png"
        Image.fromarray(sample.condition).save(folder / "source" / name)
        Image.fromarray(sample.target).save(folder / "target" / name)
        lines.append(json.dumps({"source": f"source/{name}", "target": f"target/{name}", "prompt": sample.caption}))
    (folder / "prompt.json").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a model, its refiner, a Base ControlNet and pairs, in which commands run."""
    place = tmp_path_factory.mktemp("teach")
    mini.write_folder(place / "models" / "xl")
    mini.write_folder(place / "models" / "refiner", mini.Sdxl(refines=True))
    write_base(place / "models" / "xlbase.safetensors", mini.SDXL)
    _write_pairs(place / "pairs", outline=False)
    _write_pairs(place / "rims", outline=True)
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


def _data(recipe: str) -> tuple[str, ...]:
    return ("--data", "filled=pairs", "--data", "rim=rims") if recipe == "base" else ("--data", "pairs")


def _words(recipe: str, *more: str) -> tuple[str, ...]:
    ranked = ("--rank", "4") if recipe in ("base", "ctrlora") else ()
    return ("teach", f"my-{recipe}", *_data(recipe), "--model", "xl", "--recipe", recipe, *SMALL, *ranked, *more)


@pytest.fixture(scope="module")
def taught(place: Path) -> dict[str, Path]:
    """Return what each recipe has left, and that it went well."""
    left: dict[str, Path] = {}
    for recipe in (*MECHANISMS, "text_to_image", "vae"):
        looks = ("--validate-every", "2") if recipe == "ctrlora" else ("--validate-every", "0")
        more = ("--base", "xlbase") if recipe in ("ctrlora", "full") else ()
        done = disegno(*_words(recipe, *looks, "--rate", "0.02", *more))
        assert done.exit_code == 0, done.output
        suffix = "" if recipe in ("text_to_image", "vae") else ".safetensors"
        left[recipe] = next(path for path in place.rglob(f"my-{recipe}{suffix}") if "runs" not in path.parts)
    return left


def _drawn(place: Path, model: str, *more: str) -> bytes:
    words = ("generate", "a red disc", "--model", model, "--size", "64x64", "--steps", "2", "--seed", "1")
    done = disegno(*words, "-o", "out.png", *more)
    assert done.exit_code == 0, done.output
    with Image.open(place / "out.png") as picture:
        return picture.tobytes()


PICTURE = "pairs/source/0000.png"


@pytest.mark.parametrize("recipe", MECHANISMS)
def test_what_was_taught_draws(place: Path, taught: dict[str, Path], recipe: str) -> None:
    card = identify(taught[recipe])
    assert (card.kind, card.mechanism, card.family) == ("control", MECHANISMS[recipe], "sdxl")
    control = taught["base"].with_name("my-base_rim.safetensors") if recipe == "base" else taught[recipe]
    more = ("--control", f"{control}={PICTURE}")
    assert _drawn(place, "xl", *more) != _drawn(place, "xl")
    two = _drawn(place, "xl", *more, "--control", f"{taught['ctrlora']}=rims/source/0001.png")
    assert two != _drawn(place, "xl", *more)


def test_it_was_looked_at(place: Path, taught: dict[str, Path]) -> None:
    assert {f"step-00000{step}.png" for step in (0, 2, 4)} <= {
        path.name for path in (place / "runs/my-ctrlora/looks").iterdir()
    }
    lines = [json.loads(line) for line in (place / "runs/my-ctrlora/history.jsonl").read_text("utf-8").splitlines()]
    assert sum("metrics" in line for line in lines) == 3 and "It will take about" in (
        place / "runs/my-ctrlora/report.html"
    ).read_text("utf-8")


@pytest.mark.parametrize("recipe", ["text_to_image", "vae"])
def test_a_taught_model_is_a_folder_with_the_rest_as_it_was(place: Path, taught: dict[str, Path], recipe: str) -> None:
    folder, part = taught[recipe], {"text_to_image": "unet", "vae": "vae"}[recipe]
    assert (identify(folder).kind, identify(folder).family) == ("model", "sdxl")
    assert _drawn(place, str(folder)) != _drawn(place, "xl")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        new, old = (load_file(path / name / f"{stem}.safetensors") for path in (folder, place / "models/xl"))
        assert new.keys() == old.keys()
        assert all(bool((new[key] == old[key]).all()) for key in old) == (name != part)
    config = json.loads((folder / "vae/config.json").read_text("utf-8"))
    assert config["scaling_factor"] == 0.13025


def test_a_model_from_one_file_becomes_a_folder_too(place: Path) -> None:
    mini.write_file(place / "models/one.safetensors")
    words = ("--data", "pairs", "--model", "one", "--recipe", "text_to_image", "--validate-every", "0")
    done = disegno("teach", "my-one", *words, *SMALL, "--steps", "1", "--rate", "0.02", "--dtype", "bf16")
    assert done.exit_code == 0, done.output
    (folder,) = (path for path in place.rglob("my-one") if "runs" not in path.parts)
    assert identify(folder).family == "sdxl"
    assert _drawn(place, str(folder)) != _drawn(place, "one") == _drawn(place, "xl")
    done = disegno(
        "teach", "my-bf16", "--base", "xlbase", "--rank", "4", "--dtype", "bf16", *words[:4], *words[-2:], *SMALL
    )
    assert done.exit_code == 0, done.output


MARKS = {
    "ctrlora": ("zero_convs.0.0.weight", "label_emb.0.0.lora_layer.up.weight"),
    "controlnet": ("input_hint_block.0.weight", "label_emb.0.2.bias"),
    "base": ("zero_convs.0.0.weight", "label_emb.0.2.bias"),
}


@pytest.mark.parametrize("recipe", MARKS)
def test_it_is_exported_under_the_original_names_and_draws_the_same(
    place: Path, taught: dict[str, Path], recipe: str
) -> None:
    out = place / f"{recipe}_exported.safetensors"
    done = disegno("models", "convert", str(taught[recipe]), str(out), "--to", "ldm")
    assert done.exit_code == 0, done.output
    with open_file(out) as file, open_file(taught[recipe]) as own:
        keys = file.keys()
        assert len(keys) == len(own.keys()) and all(key.startswith("control_model.") for key in keys)
        assert {f"control_model.{mark}" for mark in MARKS[recipe]} <= set(keys)
    card = identify(out)
    assert (card.mechanism, card.family, card.layout) == (MECHANISMS[recipe], "sdxl", "ldm")
    if recipe == "base":
        own = taught["base"].with_name("my-base_rim.safetensors")
        use = [f"{own}={PICTURE},base={base}" for base in (taught["base"], out)]
    else:
        use = [f"{path}={PICTURE}" for path in (taught[recipe], out)]
    assert len({_drawn(place, "xl", "--control", one) for one in use}) == 1


# ---- exactly resumed


def _request(recipe: str) -> TeachRequest:
    data = ("filled=pairs", "rim=rims") if recipe == "base" else ("pairs",)
    base = {"base": "xlbase"} if recipe == "ctrlora" else {}
    ranked = {} if recipe == "text_to_image" else {"rank": 4}
    small = {"width": 64, "height": 64, "steps": 4, "batch": 2, "save_every": 1, "validate_every": 0}
    return make_teach_request({"name": "x", "data": data, "model": "xl", "recipe": recipe, **small, **base, **ranked})


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("x*.safetensors"))} | {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("x/unet/*"))
    }


@pytest.mark.parametrize("recipe", ["base", "ctrlora", "text_to_image"])
def test_what_is_ended_goes_on_to_the_same_bytes(place: Path, tmp_path: Path, recipe: str) -> None:
    request = _request(recipe)
    settings = Settings(model_dirs=(place / "models",), cache_dir=place / "cache", dtype="fp32", device="cpu")
    *_, whole = teach(request, settings, tmp_path / "whole")
    assert isinstance(whole, TeachResult) and whole.step == 4
    stop = Stop()
    for event in teach(request, settings, tmp_path / "pieces", stop=stop):
        if isinstance(event, TeachProgress) and event.stage == "teaching" and event.step == 2:
            stop.ask()
    *_, last = teach(request, settings, tmp_path / "pieces")
    assert isinstance(last, TeachResult) and last.step == 4
    found = _bytes(tmp_path / "whole")
    assert found and found == _bytes(tmp_path / "pieces")


# ---- refused


def test_recipes_that_cannot_say_so_before_anything_is_computed(place: Path) -> None:
    for recipe in ("unicontrol", "uni_controlnet", "uni_controlnet_global"):
        name = {"unicontrol": "canny", "uni_controlnet": "canny"}.get(recipe)
        data = ("--data", f"{name}=pairs") if name else ("--data", "pairs")
        done = disegno("teach", "refused", *data, "--model", "xl", "--recipe", recipe, *SMALL)
        assert done.exit_code != 0 and f"{recipe} does not teach under xl, which is for sdxl" in _line(done)
        assert "ctrlora" in done.output
    done = disegno("teach", "refused", "--data", "pairs", "--model", "refiner", "--base", "xlbase", *SMALL)
    assert done.exit_code != 0 and "is a refiner" in _line(done)
    assert not list((place / "runs/refused").glob("*.safetensors"))


def _line(done: Result) -> str:
    return " ".join(done.output.split())
