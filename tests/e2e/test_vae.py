"""Another VAE than the model's own: from any layout, beside the model's file, in every pass; the picture says it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature, miniature_sd3, miniature_sdxl
from disegno.backbones.miniature import Miniature, ldm_nets, ldm_vae, nets, text_tensors
from disegno.cli.main import main
from disegno.core.errors import DisegnoError, KeyMismatch, ModelFileError, UnknownName, WrongFamily
from disegno.core.infotext import read_infotext
from disegno.core.request import Hires, InitImage
from disegno.weights.built_in import built_in_folder
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.e2e

OTHER = nets(Miniature(seed=5)).vae
LAYOUTS = ("bare.safetensors", "whole.ckpt", "plain.safetensors", "folder")


def _bare() -> dict[str, torch.Tensor]:
    return {name.removeprefix(ldm.VAE_PREFIX): tensor for name, tensor in ldm_vae(OTHER).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    joined = ldm_nets(replace(nets(), vae=OTHER))
    joined |= {"cond_stage_model.transformer.text_model." + name: t for name, t in text_tensors().items()}
    save_safetensors(folder / "joined.safetensors", joined, {})
    beside = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.ones(1)}  # of its training
    save_safetensors(folder / "bare.safetensors", _bare() | beside, {})
    torch.save({"state_dict": ldm_vae(OTHER), "epoch": 3}, folder / "whole.ckpt")
    save_safetensors(folder / "plain.safetensors", OTHER, {})
    # its own scaling factor is not the model's, and is not used
    miniature.write_part(
        folder / "folder",
        "diffusion_pytorch_model",
        (miniature.VAE | {"_class_name": "AutoencoderKL", "scaling_factor": 0.5}, OTHER),
    )
    miniature.write_sd1_checkpoint(folder / "near.safetensors")
    torch.save(_bare(), folder / "near.vae.pt")
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    cache = tmp_path_factory.mktemp("cache")
    return Studio(Settings(model_dirs=(folder,), cache_dir=cache, dtype="fp32", device="cpu"))


def _draw(studio: Studio, **fields: object) -> Result:
    given: dict[str, object] = {"prompt": "a cat", "model": "mini", "seed": 1, "steps": 2, "width": 64, "height": 64}
    last = list(generate(Request(**(given | fields)), studio=studio))[-1]  # pyright: ignore[reportArgumentType]
    assert isinstance(last, Result)
    return last


def _bytes(result: Result) -> bytes:
    return result.images[0].tobytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_vae_of_any_layout_draws_what_a_checkpoint_with_it_draws(studio: Studio, name: str) -> None:
    own, wanted = _draw(studio), _draw(studio, model="joined")
    found = _draw(studio, vae=name)
    assert _bytes(found) == _bytes(wanted) != _bytes(own)
    assert found.environment["model"] != own.environment["model"]
    assert _bytes(_draw(studio)) == _bytes(own)


def test_it_encodes_too_and_acts_in_both_passes(studio: Studio, folder: Path) -> None:
    for more in (
        {"init": InitImage(image=str(folder / "photo.png"), denoise=0.5)},
        {"hires": Hires(scale=2, denoise=0.5, upscaler="Lanczos")},
        {"hires": Hires(scale=2, denoise=0.5, upscaler="Lanczos", model="near")},
    ):
        given = {"model": "joined", **more}
        if more.get("hires") and more["hires"].model:  # pyright: ignore[reportAttributeAccessIssue]
            given["hires"] = Hires(scale=2, denoise=0.5, upscaler="Lanczos", model="joined")
        assert _bytes(_draw(studio, vae="bare", **more)) == _bytes(_draw(studio, **given))


def test_the_one_beside_the_models_file_is_used_unless_its_own_is_asked_for(studio: Studio) -> None:
    near, own = _draw(studio, model="near"), _draw(studio, model="near", vae="own")
    assert _bytes(near) == _bytes(_draw(studio, model="joined"))
    assert _bytes(own) == _bytes(_draw(studio))
    assert near.labels["VAE"] == "near.vae.pt" and "VAE" not in own.labels


def test_the_other_meaning_of_the_output_goes_with_it(studio: Studio) -> None:
    found = _draw(studio, vae="bare", prediction="v")
    assert _bytes(found) == _bytes(_draw(studio, model="joined", prediction="v"))
    assert _bytes(found) != _bytes(_draw(studio, vae="bare"))


def test_what_does_not_fit_is_refused_in_words(studio: Studio, folder: Path, tmp_path: Path) -> None:
    def refused(vae: str, error: type[DisegnoError], words: str) -> None:
        with pytest.raises(error, match=words):
            _draw(studio, vae=vae)

    save_safetensors(folder / "wide.safetensors", miniature_sd3.vae_tensors(), {})
    refused("wide", WrongFamily, "sd3")
    refused("joined", UnknownName, "joined")
    refused(str(folder / "joined.safetensors"), ModelFileError, r"holds a model \(sd1\), not a VAE")
    refused("bear", UnknownName, "bare")
    missing = dict(list(OTHER.items())[1:])
    save_safetensors(tmp_path / "missing.safetensors", missing, {})
    refused(str(tmp_path / "missing.safetensors"), KeyMismatch, "missing")
    save_safetensors(tmp_path / "more.safetensors", _bare() | {"encoder.down.7.x.weight": torch.zeros(1)}, {})
    refused(str(tmp_path / "more.safetensors"), KeyMismatch, r"encoder\.down\.7")


def test_another_number_of_levels_is_refused(studio: Studio, tmp_path: Path) -> None:
    small = miniature.VAE | {"block_out_channels": miniature.VAE["block_out_channels"][:1]}
    small |= {key: small[key][:1] for key in ("down_block_types", "up_block_types") if key in small}
    drawn = miniature.draw(miniature.AutoencoderKL(**small), 3)
    save_safetensors(tmp_path / "small.safetensors", drawn, {})
    with pytest.raises(WrongFamily, match=r"makes latents of 1 pixels a cell"):
        _draw(studio, vae=str(tmp_path / "small.safetensors"))


def test_stable_diffusion_3_takes_one_too(tmp_path: Path) -> None:
    miniature_sd3.write_folder(tmp_path / "sd3")
    vae = miniature_sd3.vae_tensors(miniature_sd3.Sd3(seed=9))
    save_safetensors(tmp_path / "other.safetensors", vae, {})
    studio = Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path / "cache", dtype="fp32", device="cpu"))
    own = _draw(studio, model="sd3")
    found = _draw(studio, model="sd3", vae="other")
    assert _bytes(own) != _bytes(found)
    assert set(own.warnings) == set(found.warnings) != set()  # what is missing is missing with every VAE
    miniature.write_part(tmp_path / "sd3" / "vae", "diffusion_pytorch_model", (miniature_sd3.VAE, vae))
    again = Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path / "cache", dtype="fp32", device="cpu"))
    assert _bytes(_draw(again, model="sd3")) == _bytes(found)


def _bare_models(folder: Path) -> None:
    """Write models that bring no VAE: a checkpoint, a diffusers folder, and Stable Diffusion 3 in both."""
    whole = miniature.original_tensors()
    save_safetensors(folder / "bald.safetensors", {n: t for n, t in whole.items() if not n.startswith("first_")}, {})
    shutil.rmtree(miniature.write_sd1_folder(folder / "bald-folder") / "vae")
    three = miniature_sd3.original_tensors()
    save_safetensors(folder / "bald3.safetensors", {n: t for n, t in three.items() if not n.startswith("first_")}, {})
    miniature_sd3.write_folder(folder / "bald3-folder")
    shutil.rmtree(folder / "bald3-folder" / "vae")


@pytest.mark.parametrize(
    ("model", "vae", "there"),
    [("bald", "bare", r"bald\.vae\.safetensors"), ("bald-folder", "folder", "put it there")],
)
def test_a_model_without_a_vae_draws_with_one_that_is_named(
    studio: Studio, folder: Path, model: str, vae: str, there: str
) -> None:
    _bare_models(folder)
    wanted, other = _draw(studio, model="joined"), _draw(studio)
    found = _draw(studio, model=model, vae=vae)
    assert _bytes(found) == _bytes(wanted)
    assert found.environment["model"] == wanted.environment["model"]
    save_safetensors(folder / "mini.vae.safetensors", nets().vae, {})
    own = _draw(studio, model=model, vae=str(folder / "mini.vae.safetensors"))
    (folder / "mini.vae.safetensors").unlink()
    assert _bytes(own) == _bytes(other)
    with pytest.raises(ModelFileError, match=rf"{model}.* has no VAE.*--vae FILE.*{there}"):
        _draw(studio, model=model)  # though it is open with one


@pytest.mark.parametrize("model", ["bald3", "bald3-folder"])
def test_stable_diffusion_3_without_a_vae_draws_with_one_that_is_named(
    studio: Studio, folder: Path, model: str
) -> None:
    _bare_models(folder)
    miniature_sd3.write_folder(folder / "whole3")
    save_safetensors(folder / "vae3.safetensors", miniature_sd3.vae_tensors(), {})
    found = _draw(studio, model=model, vae="vae3")
    assert _bytes(found) == _bytes(_draw(studio, model="whole3"))
    with pytest.raises(WrongFamily, match="latents of 4 channels, the model draws 16"):
        _draw(studio, model=model, vae="bare")
    with pytest.raises(ModelFileError, match=r"no VAE.*--vae FILE"):
        _draw(studio, model=model)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_stable_diffusion_xl_without_a_vae_has_its_latents_in_its_own_scale(
    studio: Studio, folder: Path, form: str
) -> None:
    whole = miniature_sdxl.write_folder(folder / "wholexl")
    if form == "folder":
        shutil.rmtree(shutil.copytree(whole, folder / "baldxl", dirs_exist_ok=True) / "vae")
    else:
        shutil.rmtree(folder / "baldxl", ignore_errors=True)
        tensors = {n: t for n, t in miniature_sdxl.original_tensors().items() if not n.startswith("first_")}
        save_safetensors(folder / "baldxl.safetensors", tensors, {})
    save_safetensors(folder / "vaexl.safetensors", miniature_sdxl.nets().vae, {})
    name = "baldxl" if form == "folder" else "baldxl.safetensors"
    assert _bytes(_draw(studio, model=name, vae="vaexl")) == _bytes(_draw(studio, model="wholexl"))


def test_the_one_beside_a_model_without_is_used(studio: Studio, folder: Path) -> None:
    _bare_models(folder)
    torch.save(_bare(), folder / "bald.vae.pt")
    try:
        assert _bytes(_draw(studio, model="bald")) == _bytes(_draw(studio, model="joined"))
    finally:
        (folder / "bald.vae.pt").unlink()


def test_the_built_in_models_own_file_draws_the_same_picture() -> None:
    studio = Studio(Settings(device="cpu", dtype="fp32"))
    given = {"model": "diorama", "steps": 1, "width": 128, "height": 128}
    own = _draw(studio, **given)
    assert _bytes(own) == _bytes(_draw(studio, vae=str(built_in_folder() / "vae.safetensors"), **given))


def test_the_command_line_takes_it_says_it_and_draws_it_again(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> Path:
        out = tmp_path / f"{len(list(tmp_path.glob('*.png')))}.png"
        words = ("generate", *arguments, "-o", str(out), "--quiet", "--dtype", "fp32")
        done = CliRunner().invoke(main, words, env={"DISEGNO_MODEL_DIRS": str(folder)}, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return out

    first = run("a cat", "--model", "mini", "--vae", "bare", "--steps", "2", "--size", "64x64", "--seed", "1")
    with Image.open(first) as picture:
        said = read_infotext(str(picture.info["parameters"]))
        drawn = picture.tobytes()
    assert said["VAE"] == "bare.safetensors" and len(str(said["VAE hash"])) == 10
    with Image.open(run("--again", str(first))) as picture:
        assert picture.tobytes() == drawn
    told = tmp_path / "told.png"  # as A1111 would have written it: the text alone
    with Image.open(first) as picture:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("parameters", str(picture.info["parameters"]))
        picture.save(told, pnginfo=info)
    with Image.open(run("--again", str(told))) as picture:
        assert picture.tobytes() == drawn
