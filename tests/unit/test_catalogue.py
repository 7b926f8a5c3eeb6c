"""The lists of a server: every name in them means the file beside it, also where the built-in model has such a name."""

from pathlib import Path
from typing import Any

import pytest

from corpus import headers
from disegno.core.settings import Settings
from disegno.engine.studio import Studio
from disegno.serving.a1111.routes_lists import lora_row
from disegno.serving.catalogue import catalogue_of

pytestmark = pytest.mark.unit


def test_a_file_whose_name_is_built_in_is_called_with_its_ending(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    headers.write_header(folder / "canny.pth", headers.controlnet())
    headers.write_header(folder / "reference-only.pth", headers.controlnet())
    headers.write_header(folder / "sketch.pth", headers.controlnet())
    headers.write_header(folder / "few.safetensors", headers.lora(modules=1))
    headers.write_header(folder / "ink.safetensors", headers.lora(modules=2))
    headers.write_header(folder / "1.5/diorama.safetensors", headers.model())
    studio = Studio(Settings(model_dirs=(folder,), cache_dir=tmp_path / "cache", device="cpu"))
    found = catalogue_of(studio)
    own = [card for card in (*found.models, *found.controls, *found.files) if card.file is not None]
    assert {card.place: card.name for card in own} == {
        "canny.pth": "canny.pth",
        "reference-only.pth": "reference-only.pth",
        "sketch.pth": "sketch",
        "few.safetensors": "few.safetensors",
        "ink.safetensors": "ink",
        "1.5/diorama.safetensors": "diorama.safetensors",
    }
    for card in own:
        assert studio.library.find(card.name, card.kind).path == folder / str(card.place)
    names = [card.name for card in (*found.models, *found.controls, *found.files)]
    assert len(set(names)) == len(names)


def test_a_lora_is_listed_with_its_header_up_to_a_bound(tmp_path: Path) -> None:
    said = {"ss_network_dim": "16", "ss_tag_frequency": '{"cats": {"a cat": 7}}', "ss_odd": "a\ud800b"}
    long = {f"ss_{n}": "x" * 4000 for n in range(8)}
    headers.write_header(tmp_path / "m/ink.safetensors", headers.lora(modules=1), said | long)
    studio = Studio(Settings(model_dirs=(tmp_path / "m",), cache_dir=tmp_path / "cache", device="cpu"))
    (card,) = (card for card in catalogue_of(studio).files if card.name == "ink")
    assert {name: card.metadata[name] for name in said} == said | {"ss_odd": "a?b"}
    assert 10_000 < sum(map(len, card.metadata.values())) <= 16 << 10
    row: Any = lora_row(card)
    assert (row["name"], row["path"]) == ("ink", "ink.safetensors")
    assert row["metadata"]["ss_tag_frequency"] == {"cats": {"a cat": 7}} and row["metadata"]["ss_network_dim"] == "16"


def test_a_control_that_may_be_read_no_more_takes_no_list_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = headers.write_header(tmp_path / "m/sketch.pth", headers.controlnet())
    studio = Studio(Settings(model_dirs=(tmp_path / "m",), cache_dir=tmp_path / "cache", device="cpu"))
    assert catalogue_of(studio).controls
    opened = Path.open

    def forbidden(self: Path, *given: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", forbidden)
    (card,) = (card for card in catalogue_of(studio).controls if card.name == "sketch")
    assert card.tag is None


def test_a_folder_that_nobody_foresaw_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m/odd"
    folder.mkdir(parents=True)
    few = '{"lora": null, "steps": 1e999, "cfg": 1, "sampler": "DDIM", "schedule": "Turbo"}'
    (folder / "model.json").write_text(f'{{"family": "diorama", "few_steps": {few}}}')
    headers.write_header(tmp_path / "m/sketch.pth", headers.controlnet())
    studio = Studio(Settings(model_dirs=(tmp_path / "m",), cache_dir=tmp_path / "cache", device="cpu"))
    (odd,) = (card for card in catalogue_of(studio).models if card.name == "odd")
    assert odd.few_steps is None
    monkeypatch.setattr("disegno.serving.catalogue._few_steps", lambda path: 1 / 0)
    monkeypatch.setattr("disegno.serving.catalogue._built_in", lambda: odd)
    found = catalogue_of(studio)
    assert [(card.name, card.kind) for card in found.files if card.file == "odd"] == [("odd", "broken")]
    assert "sketch" in [card.name for card in found.controls]


def test_a_model_of_2_says_the_size_that_it_was_trained_at(tmp_path: Path) -> None:
    for name in ("base", "wide", "told"):
        headers.write_header(tmp_path / f"m/{name}.ckpt", headers.model(width=1024))
    (tmp_path / "m/wide.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    (tmp_path / "m/told.yaml").write_text("model:\n  params:\n    linear_start: 0.00085\n")
    found = catalogue_of(Studio(Settings(model_dirs=(tmp_path / "m",), cache_dir=tmp_path / "cache", device="cpu")))
    sizes = {card.name: card.defaults and (card.defaults["width"], card.defaults["height"]) for card in found.models}
    assert (sizes["base"], sizes["wide"], sizes["told"]) == ((512, 512), (768, 768), (512, 512))
