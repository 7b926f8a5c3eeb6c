"""CtrLoRA against outputs of the original program (xyfJASON/ctrlora @b4422b4), and every form of its files."""

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from disegno.controls import ctrlora
from disegno.controls.base import Condition
from disegno.controls.strength import layer_scales
from disegno.core.errors import KeyMismatch, RequestError, UnknownKind, UnknownName, WrongFamily
from disegno.diffusion.call import Residuals
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import NoiseTable
from disegno.memory import FULL_PRECISION, Memory, Policy
from disegno.samplers.base import Plan
from disegno.samplers.catalogue import find_sampler
from disegno.weights.ctrlora_files import ConditionInfo, Layout, read_base, read_condition, save_condition
from disegno.weights.keys.control import diffusers_names, lora_names, registered_order
from disegno.weights.keys.ldm import CONTROL_PREFIX
from disegno.weights.quantised import quantise_rows

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parent.parent / "golden"
MEMORY = Memory(FULL_PRECISION)
Reader = Callable[[str], dict[str, Tensor]]
Controls = list[tuple[list[ctrlora.CtrLora], tuple[float, ...]]]

# float32 sums in another order: the original and a merged diffusers build differ by 8.7e-6 on residuals, 2.5e-6 on eps
RESIDUALS = {"atol": 2e-5, "rtol": 1e-5}
EPS = {"atol": 1e-5, "rtol": 0.0}
TRAJECTORY = {"atol": 2e-4, "rtol": 0.0}  # on |x| up to 38, over 5 steps at cfg 7.5
PICTURE = {"atol": 1e-4, "rtol": 0.0}  # the trajectory's own difference, decoded


@dataclass(frozen=True)
class Files:
    """The fixtures as published files."""

    base: Path
    a: Path
    b: Path


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, golden: Reader) -> Files:
    folder = tmp_path_factory.mktemp("ctrlora")
    base = folder / "ctrlora_sd15_basecn700k.ckpt"
    torch.save(golden("ctrlora__basecn"), base)
    a = _write(folder / "canny.safetensors", golden("ctrlora__lora_base"))
    return Files(base, a, _write(folder / "novel.safetensors", golden("ctrlora__lora_novel")))


@pytest.fixture(scope="module")
def base(files: Files, ctrlora_host: Any) -> ctrlora.Base:
    return ctrlora.open_base(files.base, ctrlora_host, MEMORY)


def _together(rows: list[Residuals]) -> Residuals:
    down = tuple(torch.cat(layer) for layer in zip(*(r.down for r in rows), strict=True))
    return Residuals(down, torch.cat([r.mid for r in rows]))


def _prepared(path: Path, base: ctrlora.Base, host: Any, hints: Tensor) -> list[ctrlora.CtrLora]:
    """Return a control for each of these condition images."""
    controller = ctrlora.open(path, host, MEMORY, base=base)
    return [controller.prepare(Condition(hint[None], str(i))) for i, hint in enumerate(hints)]


def _row_by_row(controls: list[ctrlora.CtrLora], host: Any, t: Tensor, tokens: Tensor) -> Residuals:
    """Return the residuals of a batch in which every row has its own condition, with no noisy latent to look at."""
    rows: list[Residuals] = []
    for i, control in enumerate(controls):
        nothing = torch.full_like(control.latent, torch.nan)
        found = control(host.call(nothing, t[i : i + 1], tokens[i : i + 1])).residuals
        assert found is not None
        rows.append(found)
    return _together(rows)


def _residuals(path: Path, base: ctrlora.Base, host: Any, hints: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
    return _row_by_row(_prepared(path, base, host, hints), host, t, tokens)


def _same(found: Residuals, io: dict[str, Tensor], which: str) -> None:
    expected = [io[key] for key in sorted(io) if key.startswith(f"out.control{which}.")]
    for ours, theirs in zip((*found.down, found.mid), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **RESIDUALS)


def _distance(found: Residuals, io: dict[str, Tensor]) -> float:
    """Return the largest difference from the original's residuals of condition A, as a share of their norm."""
    expected = [io[key] for key in sorted(io) if key.startswith("out.controlA.")]
    pairs = zip((*found.down, found.mid), expected, strict=True)
    return max(float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs)


def test_the_vae_is_shown_the_condition_as_it_is(golden: Reader, ctrlora_host: Any) -> None:
    io = golden("ctrlora__io")
    for i in (1, 2):
        found = ctrlora_host.encode_image(io[f"hint_image_{i}"])
        torch.testing.assert_close(found, io[f"out.hint_latent_mode_{i}"], **EPS)


def test_residuals_and_eps_of_one_and_two_conditions(
    files: Files, base: ctrlora.Base, golden: Reader, ctrlora_host: Any
) -> None:
    io = golden("ctrlora__io")
    t, tokens = io["timesteps"], io["context"]
    a = _residuals(files.a, base, ctrlora_host, io["hint_image_1"], t, tokens)
    b = _residuals(files.b, base, ctrlora_host, io["hint_image_2"], t, tokens)
    _same(a, io, "A")
    _same(b, io, "B")

    def weighted(w: float, v: float) -> Residuals:
        return a.scaled(layer_scales(w, "balanced", 5)) + b.scaled(layer_scales(v, "balanced", 5))

    cases = {
        "out.eps_nocontrol": None,
        "out.eps_A": a,
        "out.eps_B": b,
        "out.eps_A_strength0.5": a.scaled(layer_scales(0.5, "balanced", 5)),
        "out.eps_AB_w1.0_1.0": a + b,
        "out.eps_AB_w0.5_0.5": weighted(0.5, 0.5),
        "out.eps_AB_w0.7_0.4": weighted(0.7, 0.4),
    }
    call = ctrlora_host.call(io["x_noisy"], t, tokens)
    for name, residuals in cases.items():
        torch.testing.assert_close(ctrlora_host.eps(call, residuals), io[name], **EPS)


def test_a_condition_drawn_from_the_posterior(
    files: Files, base: ctrlora.Base, golden: Reader, ctrlora_host: Any
) -> None:
    io = golden("ctrlora__io")
    tensors = ctrlora.open(files.a, ctrlora_host, MEMORY, base=base).tensors
    weights = ctrlora.merged(base, tensors)
    found = base.residuals(weights, io["out.hint_latent_sample_1"], io["timesteps"].float(), io["context"])
    _same(found, io, "A_sample")


@dataclass(frozen=True)
class NoNoise:
    """DDIM without eta draws nothing."""

    def draw(self) -> Tensor:
        raise AssertionError("nothing is drawn")

    def between(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        raise AssertionError("nothing is drawn")


def _guided(host: Any, controls: Controls, io: dict[str, Tensor], x: Tensor, t: int, cfg: float) -> Tensor:
    """Return the guided noise estimate; the conditions act on both prompts."""
    at, eps = torch.full((len(x),), t), list[Tensor]()
    for tokens in (io["context"], io["context_uncond"]):
        own = [_row_by_row(control, host, at, tokens).scaled(scales) for control, scales in controls]
        eps.append(host.eps(host.call(x, at, tokens), reduce(operator.add, own)))
    return eps[1] + cfg * (eps[0] - eps[1])


def _ddim(host: Any, controls: Controls, io: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return what 5 steps of our own DDIM ask about, with the picture last, and the x0 estimates that it is told.

    Samplers keep x = x0 + sigma n; the original keeps sqrt(abar) times that. Its last step ends at timestep 0.
    """
    table = NoiseTable.from_alphas_cumprod(io["alphas_cumprod"])
    steps = sorted(io["ddim_timesteps"].tolist(), reverse=True)
    plan = Plan(table.sigmas[[*steps, 0]], NoNoise(), PREDICTIONS["epsilon"].alpha, table)
    scale = (plan.sigmas**2 + 1).sqrt()
    sampling = find_sampler("DDIM").sample(io["x_T"] * scale[0], plan)
    asked, told = list[Tensor](), list[Tensor]()
    question = next(sampling)
    try:
        for k, t in enumerate(steps):
            asked.append(question.x / scale[k])
            told.append(question.x - question.sigma * _guided(host, controls, io, asked[-1], t, 7.5))
            question = sampling.send(told[-1])
    except StopIteration as end:
        asked.append(end.value / scale[-1])
    return asked, told


@pytest.mark.parametrize(("case", "weights"), [("single", (1.0,)), ("multi_w1.0_0.8", (1.0, 0.8))])
def test_five_ddim_steps_and_the_picture(
    case: str, weights: tuple[float, ...], files: Files, base: ctrlora.Base, golden: Reader, ctrlora_host: Any
) -> None:
    io = golden("ctrlora__ddim")
    used = list(zip((files.a, files.b), (io["hint_image_1"], io["hint_image_2"]), weights, strict=False))
    controls = [(_prepared(path, base, ctrlora_host, hints), (w,) * 5) for path, hints, w in used]
    asked, told = _ddim(ctrlora_host, controls, io)
    for k, x in enumerate(asked):
        torch.testing.assert_close(x, io[f"out.{case}.x.{k}"], **TRAJECTORY)
    if case == "single":
        for k, x0 in enumerate(told):
            torch.testing.assert_close(x0, io[f"out.single.pred_x0.{k}"], **TRAJECTORY)
        torch.testing.assert_close(ctrlora_host.decode(asked[-1]), io["out.single.image"], **PICTURE)


def test_the_base_never_changes(files: Files, base: ctrlora.Base, golden: Reader, ctrlora_host: Any) -> None:
    before = {name: tensor.clone() for name, tensor in base.net.state_dict().items()}
    io = golden("ctrlora__io")
    first = _residuals(files.a, base, ctrlora_host, io["hint_image_1"], io["timesteps"], io["context"])
    _residuals(files.b, base, ctrlora_host, io["hint_image_2"], io["timesteps"], io["context"])
    again = _residuals(files.a, base, ctrlora_host, io["hint_image_1"], io["timesteps"], io["context"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.net.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip((*first.down, first.mid), (*again.down, again.mid), strict=True))


def test_half_precision_stays_close(files: Files, golden: Reader, ctrlora_host: Any) -> None:
    """bfloat16, channels last: 8 bits of mantissa through some 20 layers; merged in float32 before it is rounded."""
    memory = Memory(Policy(torch.device("cpu"), torch.bfloat16, torch.channels_last))
    base, io = ctrlora.open_base(files.base, ctrlora_host, memory), golden("ctrlora__io")
    found = _residuals(files.a, base, ctrlora_host, io["hint_image_1"], io["timesteps"], io["context"])
    assert found.mid.dtype == torch.bfloat16
    assert _distance(found, io) < 0.02


def test_stale_lora_matrices_of_the_base_are_dropped(files: Files, golden: Reader) -> None:
    stored = golden("ctrlora__basecn")
    stale = [key for key in stored if ".lora_layer." in key]
    assert len(stale) == 52
    assert len(read_base(files.base).tensors) == len(stored) - len(stale)


# how a base may be stored -> how far residuals may then be from the original's, as a share of their norm
BASES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], float]] = {
    "diffusers-names": (dict, 1e-5),
    "int8-rows": (quantise_rows, 0.03),  # a step of 1/127 of each row's largest weight, through some 20 layers
}


@pytest.mark.parametrize("form", BASES)
def test_other_forms_of_the_base(form: str, files: Files, tmp_path: Path, golden: Reader, ctrlora_host: Any) -> None:
    make, tolerance = BASES[form]
    path = _write(tmp_path / "base.safetensors", make(dict(read_base(files.base).tensors)))
    base, io = ctrlora.open_base(path, ctrlora_host, MEMORY), golden("ctrlora__io")
    found = _residuals(files.a, base, ctrlora_host, io["hint_image_1"], io["timesteps"], io["context"])
    assert _distance(found, io) < tolerance


def _kept(source: Path, target: Path, layout: Layout = "disegno") -> None:
    condition = read_condition(source)
    save_condition(target, condition.tensors, condition.info, layout)


def test_published_to_ours_and_back_keeps_every_bit(files: Files, tmp_path: Path) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    _kept(files.a, ours)
    _kept(ours, back, "published")
    original, returned = load_file(files.a), load_file(back)
    assert original.keys() == returned.keys()
    assert all(torch.equal(original[key], returned[key]) for key in original)
    assert read_condition(ours).rank == read_condition(back).rank == 4


def test_our_form_gives_the_same_residuals(
    files: Files, base: ctrlora.Base, tmp_path: Path, golden: Reader, ctrlora_host: Any
) -> None:
    ours, io = tmp_path / "ours.safetensors", golden("ctrlora__io")
    _kept(files.a, ours)
    _same(_residuals(ours, base, ctrlora_host, io["hint_image_1"], io["timesteps"], io["context"]), io, "A")


def test_the_header_survives(files: Files, base: ctrlora.Base, tmp_path: Path, ctrlora_host: Any) -> None:
    info = ConditionInfo("Edges", "sd1", "canny", base.sha256, 1000, other={"controllability": "0.91"})
    save_condition(tmp_path / "e.safetensors", read_condition(files.a).tensors, info)
    controller = ctrlora.open(tmp_path / "e.safetensors", ctrlora_host, MEMORY, base=base)
    assert controller.info == info
    assert (controller.name, controller.annotator) == ("Edges", "canny")
    assert controller.applied == ctrlora.Applied(26, 26)
    assert not controller.warnings


@pytest.mark.parametrize("task", ["hed", "canny", "seg"])
def test_one_task_of_a_pretraining_checkpoint(
    task: str, base: ctrlora.Base, tmp_path: Path, golden: Reader, ctrlora_host: Any
) -> None:
    """The fixture's own base condition was cut out of this checkpoint for the task canny: every tensor is the same."""
    path = tmp_path / "N-Step-Checkpoint.ckpt"
    stored = golden("ctrlora__pretrain_full")
    torch.save({"state_dict": stored, "epoch": 3, "global_step": 7}, path)
    condition = read_condition(path, task)
    modules = json.loads((GOLDEN / "ctrlora.json").read_text("utf-8"))["loras_dict_index_to_module"]
    names = diffusers_names(modules)
    for i, module in enumerate(modules):
        for half, name in zip(("down", "up"), lora_names(names[module]), strict=True):
            assert torch.equal(condition.tensors[name], stored[f"{CONTROL_PREFIX}loras_dict.{task}.{i}.{half}.weight"])
    if task == "canny":
        published = _write(tmp_path / "canny.safetensors", golden("ctrlora__lora_base"))
        expected = read_condition(published).tensors
        assert condition.tensors.keys() == expected.keys()
        assert all(torch.equal(condition.tensors[name], expected[name]) for name in expected)
    assert ctrlora.open(path, ctrlora_host, MEMORY, base=base, task=task).applied.num_applied == 26
    opened = ctrlora.open_base(path, ctrlora_host, MEMORY)
    assert all(torch.equal(tensor, base.net.state_dict()[name]) for name, tensor in opened.net.state_dict().items())


def test_a_task_must_be_chosen(tmp_path: Path, golden: Reader) -> None:
    path = _write(tmp_path / "pretrain.safetensors", golden("ctrlora__pretrain_full"))
    with pytest.raises(UnknownName, match=r"holds 3 conditions\. Choose one task of: canny, hed, seg"):
        read_condition(path)
    with pytest.raises(UnknownName, match=r"no task in pretrain\.safetensors named 'cany'\. Choose one of: canny"):
        read_condition(path, "cany")


def test_the_order_of_loras_dict() -> None:
    """The fixture's 26 modules and the 82 of the real size, from any order."""
    fixture = json.loads((GOLDEN / "ctrlora.json").read_text("utf-8"))["loras_dict_index_to_module"]
    real = json.loads((GOLDEN / "keymaps" / "ctrlora_sd15_lora_modules.json").read_text("utf-8"))
    for modules in (fixture, [row["original"].removeprefix(CONTROL_PREFIX) for row in real]):
        assert registered_order(sorted(modules)) == modules


def _without(files: Files, path: Path, part: str, header: dict[str, str] | None = None) -> Path:
    kept = {key: tensor for key, tensor in load_file(files.a).items() if part not in key}
    return _write(path, kept, header)


def test_a_file_that_would_silently_do_nothing_is_refused(
    files: Files, base: ctrlora.Base, tmp_path: Path, ctrlora_host: Any
) -> None:
    bare = _without(files, tmp_path / "bare.safetensors", "zero_convs")
    with pytest.raises(KeyMismatch, match="would silently give no control"):
        ctrlora.open(bare, ctrlora_host, MEMORY, base=base)
    shares = _without(files, tmp_path / "s.safetensors", "zero_convs", {"disegno.from_base": "zero_convs"})
    assert ctrlora.open(shares, ctrlora_host, MEMORY, base=base).applied.num_applied == 26
    half = _without(files, tmp_path / "half.safetensors", "time_embed.0.lora_layer.up")
    with pytest.raises(KeyMismatch, match=r"time_embedding\.linear_1\.lora_layer\.up"):
        ctrlora.open(half, ctrlora_host, MEMORY, base=base)
    none = _without(files, tmp_path / "none.safetensors", "lora_layer")
    with pytest.raises(UnknownKind, match="no LoRA matrices"):
        ctrlora.open(none, ctrlora_host, MEMORY, base=base)
    own = {name: tensor for name, tensor in read_condition(files.a).tensors.items() if ".lora_layer." not in name}
    strange = {f"elsewhere.lora_layer.{half}.weight": torch.zeros(4, 4) for half in ("down", "up")}
    lost = _write(tmp_path / "lost.safetensors", own | strange)
    with pytest.raises(KeyMismatch, match="applies to none of"):
        ctrlora.open(lost, ctrlora_host, MEMORY, base=base)


def test_what_applies_in_part_says_so(
    files: Files, base: ctrlora.Base, tmp_path: Path, ctrlora_host: Any, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {f"elsewhere.lora_layer.{half}.weight": torch.zeros(4, 4) for half in ("down", "up")}
    info = ConditionInfo("part", base_sha256="0" * 64)
    save_condition(tmp_path / "part.safetensors", dict(read_condition(files.a).tensors) | extra, info)
    controller = ctrlora.open(tmp_path / "part.safetensors", ctrlora_host, MEMORY, base=base)
    assert controller.applied == ctrlora.Applied(26, 27)
    assert "only 26 of its 27 LoRA modules" in controller.warnings[0]
    assert "taught on another base (000000000000)" in controller.warnings[1]
    assert all(warning in caplog.text for warning in controller.warnings)


def test_what_does_not_belong_together_is_refused(
    files: Files, base: ctrlora.Base, tmp_path: Path, golden: Reader, ctrlora_host: Any
) -> None:
    with pytest.raises(RequestError, match="name its Base ControlNet"):
        ctrlora.open(files.a, ctrlora_host, MEMORY)
    save_condition(tmp_path / "d.safetensors", read_condition(files.a).tensors, ConditionInfo("d", family="diorama"))
    with pytest.raises(WrongFamily, match="is for diorama, the open model is sd1"):
        ctrlora.open(tmp_path / "d.safetensors", ctrlora_host, MEMORY, base=base)
    wide = {key: torch.zeros(4, 99) if "down" in key else tensor for key, tensor in load_file(files.a).items()}
    with pytest.raises(KeyMismatch, match="does not fit"):
        ctrlora.open(_write(tmp_path / "wide.safetensors", wide), ctrlora_host, MEMORY, base=base)
    with pytest.raises(UnknownKind, match="it is a ControlNet"):
        ctrlora.open_base(_write(tmp_path / "cn.safetensors", golden("controlnet__control")), ctrlora_host, MEMORY)
