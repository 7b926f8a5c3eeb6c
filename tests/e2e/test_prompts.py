"""Prompts, end to end on miniatures: they change over the steps, compose, name styles, wildcards, LoRAs, embeddings."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from disegno.core.errors import BadImage, KeyMismatch, RequestError, UnknownName, WrongFamily
from disegno.core.request import Hires, LoraUse
from disegno.engine import batch
from disegno.engine.batch import Batch
from disegno.engine.generate import draw
from disegno.engine.record import png_bytes, read
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.e2e

SMALL = Request(prompt="a cat", model="mini", seed=3, steps=4, width=64, height=64, sampler="Euler")
NOT_OURS = ("sample_size", "out_channels", "up_block_types")
TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def _randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _write_lora(path: Path, seed: int, **header: str) -> None:
    tensors = {
        f"lora_unet_{TO_Q}.lora_down.weight": _randn(4, 32, seed=seed),
        f"lora_unet_{TO_Q}.lora_up.weight": _randn(32, 4, seed=seed + 1),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": _randn(4, 32, seed=seed + 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": _randn(64, 4, seed=seed + 3),
    }
    save_safetensors(path, tensors, header)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    config = {key: value for key, value in miniature.SD1.unet_config.items() if key not in NOT_OURS}
    net = miniature.draw(ControlNetModel(**config), 1)
    save_safetensors(folder / "plain.safetensors", net, {"disegno.mechanism": "controlnet"})
    _write_lora(folder / "ink.safetensors", 10, ss_output_name="Ink Wash")
    _write_lora(folder / "oil.safetensors", 20)
    other = {
        "lora_unet_x_attn2_to_k.lora_down.weight": torch.ones(4, 1024),
        "lora_unet_x_attn2_to_k.lora_up.weight": torch.ones(4, 4),
    }
    save_safetensors(folder / "two.safetensors", other, {})
    save_safetensors(
        folder / "nowhere.safetensors", {f"lora_unet_no.lora_{h}.weight": torch.ones(4, 4) for h in ("up", "down")}, {}
    )
    (folder / "embeddings").mkdir()
    save_safetensors(folder / "embeddings" / "my-style.safetensors", {"emb_params": _randn(2, 32, seed=5)}, {})
    save_safetensors(folder / "embeddings" / "toy (old).safetensors", {"emb_params": _randn(2, 32, seed=6)}, {})
    save_safetensors(folder / "embeddings" / "sd2-style.safetensors", {"emb_params": _randn(2, 1024, seed=5)}, {})
    # a file that cannot be read spoils no other picture
    two = {"<one>": _randn(1, 768, seed=7), "<two>": _randn(1, 768, seed=8)}
    save_safetensors(folder / "embeddings" / "two-words.safetensors", two, {})
    (folder / "styles.csv").write_text('name,prompt,negative_prompt\nNoir,"{prompt}, noir",colour\n', "utf-8")
    (folder / "wildcards").mkdir()
    (folder / "wildcards" / "animal.txt").write_text("cat\ndog\nfox\nowl\n", "utf-8")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    dirs = {"model_dirs": (folder,), "prompt_dirs": (folder,), "cache_dir": folder / "cache"}
    yield Studio(Settings(**dirs, dtype="fp32", device="cpu"))


def _draw(studio: Studio, **fields: object) -> Result:
    *_, result = generate(replace(SMALL, **fields), studio=studio)
    assert isinstance(result, Result)
    return result


def _pixels(result: Result) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in result.images]


def _same(a: Result, b: Result, by: int = 0) -> bool:
    return all(np.abs(one - two).max() <= by for one, two in zip(_pixels(a), _pixels(b), strict=True))


# ---- over the steps


def test_a_schedule_draws_each_text_for_its_steps(studio: Studio) -> None:
    cat, dog = _draw(studio), _draw(studio, prompt="a dog")
    both = _draw(studio, prompt="a [cat:dog:0.5]")
    assert not _same(both, cat) and not _same(both, dog)
    assert _same(_draw(studio, prompt="a [cat:dog:1.0]"), cat)
    assert _same(_draw(studio, prompt="a [cat:dog:0]"), dog)
    assert _same(_draw(studio, prompt="a [dog::0]cat"), cat)
    assert not _same(_draw(studio, prompt="a [cat|dog]"), both)


def test_the_negative_prompt_is_scheduled_too(studio: Studio) -> None:
    plain = _draw(studio, negative="red")
    assert not _same(_draw(studio, negative="[red:blue:2]"), plain)
    assert _same(_draw(studio, negative="[red:blue:1.0]"), plain)


def test_samplers_of_two_calls_a_step_count_both(studio: Studio) -> None:
    late, never = (_draw(studio, prompt=f"a [cat:dog:{when}]", sampler="Heun") for when in (5, 6))
    plain = _draw(studio, sampler="Heun")
    assert _same(never, plain) and not _same(late, plain)  # 4 steps of Heun: calls 0 to 6
    old = _draw(studio, prompt="a [cat:dog:1]", old_timelines=True, sampler="Heun")
    assert _same(old, _draw(studio, prompt="a [cat:dog:1]", sampler="Heun"))


def test_two_requests_with_different_schedules_are_what_they_are_alone(studio: Studio) -> None:
    requests = [
        replace(SMALL, prompt="a [cat:dog:0.5] AND (rain:1.3):0.4", negative="[red:blue:1]", seed=1),
        replace(SMALL, prompt="[a|b]" + " very long" * 60, negative="x", seed=2, batch=2, steps=6),
        replace(SMALL, prompt="a cat <lora:ink:0.5>", seed=3, steps=5),
    ]
    alone = [
        _draw(studio, **{k: getattr(r, k) for k in ("prompt", "negative", "seed", "batch", "steps")}) for r in requests
    ]
    drawings = [draw(request, studio) for request in requests]
    phases = [next(drawing) for drawing in drawings]
    batch = Batch(phases[0].backbone)
    for phase in phases:  # the second and third join a step later each
        for run in phase.runs:
            batch.add(run)
        batch.step()
    while batch.runs:
        batch.step()
    for drawing, expected in zip(drawings, alone, strict=True):
        with pytest.raises(StopIteration) as ended:
            next(drawing)
        assert _same(ended.value.value, expected, by=2)  # kernels round by the shape of the batch, 1e-5; then 8 bits


def test_an_image_with_a_prompt_of_its_own_is_what_it_is_alone(studio: Studio) -> None:
    prompts = ("a cat", "a dog AND snow:0.5", "x " * 100)
    together = _draw(studio, prompts=prompts, negatives=("red", "blue", ""), batch=3)
    for i, (prompt, negative) in enumerate(zip(prompts, ("red", "blue", ""), strict=True)):
        alone = _draw(studio, prompt=prompt, negative=negative, seed=SMALL.seed + i)
        assert np.abs(_pixels(together)[i] - _pixels(alone)[0]).max() <= 2


# ---- parts, weights, lengths


def test_parts_are_composed(studio: Studio) -> None:
    cat = _draw(studio)
    assert _same(_draw(studio, prompt="a cat AND a dog:0"), cat, by=1)
    assert _same(_draw(studio, prompt="a cat:0.5 AND a cat:0.5"), cat, by=1)
    assert not _same(_draw(studio, prompt="a cat AND a dog"), cat, by=1)
    heavy = _draw(studio, prompt="a cat:1.5")
    assert _same(heavy, _draw(studio, cfg=1.5 * 7.0), by=1)  # the family's own cfg is 7
    assert "ends in :1.5" in heavy.warnings[0]


def test_emphasis_and_its_modes_act(studio: Studio) -> None:
    results = [_draw(studio, prompt="a (cat:1.4)", emphasis=mode) for mode in ("original", "no-norm", "ignore", "none")]
    assert len({result.images[0].tobytes() for result in results}) == 4
    assert _same(results[2], _draw(studio))


def test_long_prompts_work_with_controls(studio: Studio, folder: Path) -> None:
    unit = ControlUnit(name="plain", image=str(folder / "photo.png"), annotate="none")
    long = "a red car, " * 40
    plain, controlled = _draw(studio, prompt=long), _draw(studio, prompt=long, controls=(unit,))
    assert not _same(plain, controlled)
    first = _draw(studio, prompt="a red car, " * 18, controls=(unit,))
    assert not _same(first, controlled)
    padded = _draw(studio, prompt=long, controls=(unit,), pad_texts=True)
    assert not _same(padded, controlled)
    assert _same(_draw(studio, pad_texts=True), _draw(studio))


# ---- what prompts name


def test_styles_and_wildcards_are_filled_in(studio: Studio) -> None:
    styled = _draw(studio, styles=("Noir",))
    assert _same(styled, _draw(studio, prompt="a cat, noir", negative="colour"))
    assert (styled.prompts, styled.negatives) == (("a cat, noir",), ("colour",))
    drawn = _draw(studio, prompt="a __animal__", batch=4)
    assert len(set(drawn.prompts)) > 1
    assert drawn.prompts == _draw(studio, prompt="a __animal__", batch=4).prompts
    alone = _draw(studio, prompt=drawn.prompts[2], seed=SMALL.seed + 2)
    assert np.abs(_pixels(drawn)[2] - _pixels(alone)[0]).max() <= 2
    assert "__nobody__" in _draw(studio, prompt="__nobody__").warnings[0]
    with pytest.raises(UnknownName, match=r"style named 'Noire'. Choose one of: Noir"):
        _draw(studio, styles=("Noire",))


def test_loras_act_by_tag_and_by_field_and_leave_nothing(studio: Studio) -> None:
    plain, weights = _draw(studio), {k: t.clone() for k, t in studio.backbone("mini").net.state_dict().items()}
    tagged = _draw(studio, prompt="a cat<lora:ink:0.5>")
    assert not _same(tagged, plain)
    assert _same(tagged, _draw(studio, loras=(LoraUse(name="ink", strength=0.5),)))
    assert _same(tagged, _draw(studio, prompt="a cat<lora:Ink Wash:0.5>"))  # its alias
    assert not _same(tagged, _draw(studio, prompt="a cat<lora:ink:0.5:0>"))  # the text encoder's part alone
    assert _same(_draw(studio, prompt="a cat<lora:ink:0>"), plain)
    assert _same(_draw(studio), plain)
    assert all(torch.equal(t, weights[k]) for k, t in studio.backbone("mini").net.state_dict().items())


def test_each_image_wears_its_own_loras(studio: Studio) -> None:
    prompts = ("a cat<lora:ink:0.5>", "a cat", "a cat<lora:oil:0.5><lora:ink:0.2>", "a cat<lora:ink:0.5>")
    together = _draw(studio, prompts=prompts, batch=4)
    for i, prompt in enumerate(prompts):
        alone = _draw(studio, prompt=prompt, seed=SMALL.seed + i)
        assert np.abs(_pixels(together)[i] - _pixels(alone)[0]).max() <= 2


@pytest.mark.parametrize(
    ("tag", "error", "words"),
    [
        ("<lora:inky>", UnknownName, "no LoRA named 'inky'. Choose one of: ink"),
        ("<lora:two:1>", WrongFamily, "two.safetensors is for sd2, the open model is sd1"),
        ("<lora:nowhere:1>", KeyMismatch, "applies to none"),
        ("<lora:ink:much>", RequestError, "'much' is no number"),
        ("<lora:plain:1>", RequestError, "plain"),
    ],
)
def test_a_lora_that_cannot_act_is_an_error(tag: str, error: type[Exception], words: str, studio: Studio) -> None:
    with pytest.raises(error) as caught:
        _draw(studio, prompt=f"a cat {tag}")
    assert words in str(caught.value)


def test_embeddings_of_the_library_act_by_their_name(studio: Studio) -> None:
    styled = _draw(studio, prompt="a cat, My-Style")
    path = studio.library.find("my-style", "embedding").path
    path.rename(hidden := path.with_suffix(".hidden"))
    try:
        assert not _same(_draw(studio, prompt="a cat, My-Style"), styled)
    finally:
        hidden.rename(path)
    assert "is for sd2" in _draw(studio, prompt="sd2-style").warnings[0]
    assert "cannot be read (two-words.safetensors is no embedding" in _draw(studio, prompt="two-words").warnings[0]


def test_a_second_pass_goes_on_with_the_schedule_or_has_words_of_its_own(studio: Studio) -> None:
    hires = Hires(scale=1.5, denoise=0.5)
    plain = _draw(studio, hires=hires)
    assert not _same(_draw(studio, prompt="a [cat:dog:1.5]", hires=hires), plain)  # halfway through the second pass
    assert _same(_draw(studio, prompt="a [cat:dog:2.0]", hires=hires), plain)
    own = _draw(studio, prompt="a cat", hires=replace(hires, prompt="a dog", negative="red"))
    assert not _same(own, plain)
    assert _same(_draw(studio, prompt="a [cat:dog:1.0]", hires=replace(hires, negative="red")), own)
    lora = _draw(studio, hires=replace(hires, prompt="a cat<lora:ink:0.5>"))
    assert not _same(lora, plain)


def test_a_pictures_text_names_the_files_that_drew_it(studio: Studio, folder: Path) -> None:
    control = ControlUnit(name="plain", image=str(folder / "photo.png"), annotate="canny", end=0.5)
    labels = _draw(studio, prompt="a my-style cat <lora:ink:0.5>", controls=(control,)).labels
    hashes = [studio.library.find(name, kind).sha256() for name, kind in (("mini", "model"), ("my-style", "embedding"))]
    assert (labels["Model"], labels["Model hash"]) == ("mini", hashes[0][:10])
    assert labels["TI hashes"] == f"my-style: {hashes[1][:12]}"
    ink = (folder / "ink.safetensors").read_bytes()
    assert labels["Lora hashes"] == f"ink: {sha256(ink[8 + int.from_bytes(ink[:8], 'little') :]).hexdigest()[:12]}"
    assert labels["ControlNet 0"].startswith("Module: canny, Model: plain, Weight: 1.0, Resize Mode: Crop and Resize, ")
    assert "Guidance End: 0.5, Pixel Perfect: True, Control Mode: Balanced" in labels["ControlNet 0"]


# ---- much of everything


def test_a_hundred_loras_draw_and_more_than_can_be_are_refused(studio: Studio) -> None:
    many = "".join(f"<lora:{name}:0.01>" for name in ("ink", "oil") * 50)
    began = perf_counter()
    drawn = _draw(studio, prompt=f"a cat {many}", steps=1)
    assert perf_counter() - began < 20  # measured: 0.1 s
    assert not _same(drawn, _draw(studio, prompt="a cat", steps=1))
    with pytest.raises(RequestError, match="names 300 LoRAs; at most 256"):
        _draw(studio, prompt="a cat" + "<lora:ink>" * 300)


def test_texts_that_change_too_often_are_refused(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disegno.engine.wording.MAX_STATES", 77 * 4)
    assert _draw(studio, prompt="[a|b|c]", steps=4)
    with pytest.raises(RequestError, match="more than 308 tokens over all steps"):
        _draw(studio, prompt="[a|b|c|d]", steps=4)


def test_many_parts_and_pictures_are_evaluated_in_portions(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"prompt": "a cat AND snow AND a dog :-0.5", "batch": 3, "steps": 2}
    whole, sizes, call = _draw(studio, **fields), list[int](), batch._call
    monkeypatch.setattr(batch, "MAX_CELLS", 5 * 8 * 8)
    monkeypatch.setattr(batch, "_call", lambda rows, *others: sizes.append(len(rows)) or call(rows, *others))
    assert _same(whole, _draw(studio, **fields), by=1)
    assert sizes == [5, 5, 2] * 2  # 9 rows of parts and 3 of the negative prompt, at each step
    with pytest.raises(RequestError, match="has 200 parts between AND; at most 128"):
        _draw(studio, prompt=" AND ".join("a" * 200))


@pytest.mark.parametrize("prompt", ["(" * 3000 + "a", "[" * 2000 + "a:b:0.5]" * 2000, "((a:1e9):-9) AND b:-3"])
def test_absurd_prompts_draw_or_say_why(prompt: str, studio: Studio) -> None:
    began = perf_counter()
    try:
        assert _draw(studio, prompt=prompt, steps=1).images
    except RequestError as error:
        assert "no picture" in str(error) or "beyond all numbers" in str(error)
    assert perf_counter() - began < 20  # measured: 0.1 s


def test_an_embedding_whose_name_has_brackets_is_named_with_backslashes(studio: Studio) -> None:
    made = _draw(studio, prompt=r"a toy \(old\)")
    assert made.labels["TI hashes"].startswith("toy (old): ")
    assert not _same(made, _draw(studio, prompt=r"a toy \(new\)"))


# ---- a hires pass with words of its own


def _again(result: Result, image: int, path: Path) -> Request:
    path.write_bytes(png_bytes(result, image))
    return read(path).replay()


def test_the_hires_passes_own_words_are_drawn_again_in_full(studio: Studio, folder: Path, tmp_path: Path) -> None:
    hires = Hires(scale=1.5, denoise=0.6, prompt="a __animal__, fog", negative="blur", upscaler="Nearest")
    asked = {"styles": ("Noir",), "hires": hires, "batch": 2, "seed": 3}
    made = _draw(studio, **asked)
    told = made.request.hires
    assert told is not None and len(set(told.prompts)) == 2 and told.negatives == ("blur, colour",) * 2
    assert all(text.endswith(", fog, noir") and "__" not in text for text in told.prompts)
    assert _same(
        made, _draw(studio, **{**asked, "hires": replace(hires, prompts=told.prompts, negatives=told.negatives)})
    )
    animals = folder / "wildcards" / "animal.txt"
    lines = animals.read_text("utf-8")
    try:
        animals.unlink()
        *_, again = generate(_again(made, 1, tmp_path / "made.png"), studio=studio)
    finally:
        animals.write_text(lines, "utf-8")
    assert isinstance(again, Result) and _same(made, again)
    alone = _draw(studio, hires=replace(hires, prompt=None, negative=None, prompts=("a dog",), negatives=("fog",)))
    *_, again = generate(_again(alone, 0, tmp_path / "made.png"), studio=studio)
    assert isinstance(again, Result) and _same(alone, again)
    plain = _draw(studio, hires=replace(hires, prompt="a dog"))
    assert plain.request.hires is not None and (plain.request.hires.prompts, plain.request.hires.negatives) == ((), ())


def test_what_the_hires_pass_cannot_have_is_said_before_the_first_step(studio: Studio) -> None:
    unit = ControlUnit(name="plain", image="gone.png", annotate="none", passes="hires")
    for fields, error in (
        ({"hires": Hires(prompt="a cat <lora:gone:1>")}, UnknownName),
        ({"hires": Hires(), "controls": (unit,)}, BadImage),
    ):
        events = generate(replace(SMALL, **fields), studio=studio)
        assert next(events).stage == "opening"
        with pytest.raises(error):
            next(events)
