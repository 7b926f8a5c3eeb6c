"""Looks at a training: through the engine, with figures that mean something, and without disturbing it."""

import gc
import random
import shutil
import weakref
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disegno.core.errors import DisegnoError
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.engine.studio import Studio
from disegno.training import watcher as watching
from disegno.training.base import Look, Looking
from disegno.training.convergence import AGREEMENT, CONTROLLABILITY, EFFECT, ERROR, SWAPPED
from disegno.training.data.opening import open_pairs
from disegno.training.style_watcher import StyleWatcher
from disegno.training.watcher import EngineWatcher, open_watcher
from kit.pairs import write_pairs

pytestmark = pytest.mark.e2e

DIORAMA = Path(__file__).parents[2] / "src/disegno/data/diorama"
SIZE = 64


def _watcher(data: Path, out: Path) -> EngineWatcher:
    request = TeachRequest(name="mine", data=(str(data),), annotator="canny", width=SIZE, height=SIZE)
    return replace(open_watcher(request, open_pairs(str(data)), out, Settings()), steps=4)


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> EngineWatcher:
    return _watcher(write_pairs(tmp_path_factory.mktemp("data") / "pairs", 4, SIZE), tmp_path_factory.mktemp("looks"))


def _seen(looking: Looking) -> Look:
    """Return the look that a watcher takes."""
    while True:
        try:
            next(looking)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def look(watcher: EngineWatcher) -> Look:
    return _seen(watcher.look(DIORAMA / "control_canny.safetensors", 100))


def test_a_look_has_figures_between_floor_and_ceiling_and_a_sheet(watcher: EngineWatcher, look: Look) -> None:
    metrics = look.metrics
    assert {"edge-f1", "edge-f1-floor", "edge-f1-ceiling", CONTROLLABILITY, ERROR, EFFECT} <= metrics.keys()
    assert metrics["edge-f1-floor"] < metrics["edge-f1-ceiling"] <= 1
    assert metrics[AGREEMENT] == pytest.approx(1.0) and metrics[SWAPPED] < 0.5
    assert 0.004 < metrics[EFFECT] < 1
    share = (metrics["edge-f1"] - metrics["edge-f1-floor"]) / (metrics["edge-f1-ceiling"] - metrics["edge-f1-floor"])
    assert metrics[CONTROLLABILITY] == pytest.approx(share)
    assert look.sheet is not None
    with Image.open(look.sheet) as page:
        assert page.width > 6 * SIZE and page.height > 4 * SIZE  # condition, 2 x (drawn, again), without, real


def test_the_same_file_gives_the_same_look_and_another_one_another(
    watcher: EngineWatcher, look: Look, tmp_path: Path
) -> None:
    """The trainer writes every look's control to one place."""
    latest = tmp_path / "latest.safetensors"
    shutil.copy(DIORAMA / "control_canny.safetensors", latest)
    assert _seen(watcher.look(latest, 200)).metrics == look.metrics
    shutil.copy(DIORAMA / "control_segmentation.safetensors", latest)
    assert _seen(watcher.look(latest, 300)).metrics != look.metrics


def _numbers() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_it_draws_no_random_number_of_the_training(watcher: EngineWatcher) -> None:
    def seeded(act: Callable[[], object]) -> list[float]:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        act()
        return _numbers()

    threads = torch.get_num_threads()
    assert seeded(lambda: _seen(watcher.look(DIORAMA / "control_canny.safetensors", 1))) == seeded(lambda: None)
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()


def test_what_cannot_be_drawn_is_an_error_and_the_next_look_is_sound(
    watcher: EngineWatcher, look: Look, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a control" * 9)
    with pytest.raises(DisegnoError):
        _seen(watcher.look(broken, 1))
    assert _seen(watcher.look(DIORAMA / "control_canny.safetensors", 2)).metrics == look.metrics


def test_a_full_disk_costs_the_pictures_not_the_figures(watcher: EngineWatcher, look: Look, tmp_path: Path) -> None:
    folder, watcher.folder = watcher.folder, tmp_path / "file" / "looks"
    (tmp_path / "file").write_text("in the way")
    try:
        seen = _seen(watcher.look(DIORAMA / "control_canny.safetensors", 1))
    finally:
        watcher.folder = folder
    assert seen.sheet is None and seen.metrics == look.metrics


def test_it_gives_the_word_back_after_every_step_and_may_be_left_there(watcher: EngineWatcher, look: Look) -> None:
    control = DIORAMA / "control_canny.safetensors"
    words = sum(1 for _ in watcher.look(control, 1))
    assert words >= 4 * watcher.steps  # each of four rows' pictures, step by step
    before = torch.get_rng_state()
    with closing(watcher.look(control, 1)) as looking:
        for _ in range(words // 2):
            next(looking)
    assert torch.equal(torch.get_rng_state(), before)
    assert _seen(watcher.look(control, 2)).metrics == look.metrics


@pytest.mark.parametrize("is_style", [False, True])
@pytest.mark.parametrize("is_large", [False, True])
def test_a_large_model_is_closed_after_a_look(
    watcher: EngineWatcher, is_style: bool, is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would lie beside the one that trains, which was found to fit without it."""
    monkeypatch.setattr(watching, "SLOW_PARAMETERS", 0 if is_large else 10**9)
    studio = Studio(Settings())
    own = (
        StyleWatcher(watcher.request, watcher.held_out, tmp_path, studio)
        if is_style
        else replace(watcher, studio=studio, _baseline=None)
    )
    net = weakref.ref(studio.backbone(watcher.request.model).net)
    with closing(own.look(DIORAMA / "control_canny.safetensors", 1)) as looking:
        next(looking)
    gc.collect()
    assert (net() is None) == is_large
