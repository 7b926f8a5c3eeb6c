"""The name tables, on full-size models (shapes only) and on parts of files."""

import json
from pathlib import Path

import pytest
import torch

from disegno.backbones.miniature import sd15_shapes
from disegno.weights.keys import ldm
from disegno.weights.keys.control import is_adapted, lora_names, sizes_of

pytestmark = pytest.mark.unit

KEYMAPS = Path(__file__).parents[1] / "golden" / "keymaps"
MAP = "controlnet_sd15_keymap"
SD15 = ldm.Layout((2, 2, 2, 2))


def _keymap(name: str) -> dict[str, dict[str, object]]:
    return json.loads((KEYMAPS / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["controlnet_sd15_keymap", "ctrlora_sd15_basecn_keymap"])
def test_control_nets_of_full_size_are_renamed_as_recorded(name: str) -> None:
    recorded = {key.removeprefix(ldm.CONTROL_PREFIX): str(of["diffusers"]) for key, of in _keymap(name).items()}
    assert ldm.layout_of(recorded) == SD15
    assert ldm.unet_names(recorded) == recorded


def test_a_block_that_no_net_has_is_no_block() -> None:
    """A file may name one, and tables as long as its number would take all memory."""
    recorded = {key.removeprefix(ldm.CONTROL_PREFIX): str(of["diffusers"]) for key, of in _keymap(MAP).items()}
    far = {"input_blocks.99999999999.0.in_layers.0.weight": "", "down_blocks.0.resnets.99999999999.norm1.weight": ""}
    assert ldm.unet_names([*recorded, *far]) == recorded
    shapes = {str(of["diffusers"]): tuple(of["shape"]) for of in _keymap(MAP).values()}
    sizes = sizes_of(shapes)
    assert ldm.diffusers_layout_of([*shapes, *far]) == SD15
    assert sizes_of(shapes | {"down_blocks.99999999999.resnets.0.norm1.weight": (1,)}) == sizes


def test_lora_matrices_are_renamed_without_the_downsamplers_names() -> None:
    modules = json.loads((KEYMAPS / "ctrlora_sd15_lora_modules.json").read_text("utf-8"))
    names = {
        f"{m['original'].removeprefix(ldm.CONTROL_PREFIX)}.lora_layer.up.weight": m["diffusers"]
        + ".lora_layer.up.weight"
        for m in modules
    }
    assert len(names) == 82
    assert ldm.layout_of(names) == SD15
    assert ldm.unet_names(names) == names


def test_a_condition_of_full_size_gets_the_names_of_the_published_files() -> None:
    """246 tensors: 82 pairs of matrices, 26 of zero convolutions, 56 of norms."""
    recorded = {str(of["diffusers"]): key for key, of in _keymap("ctrlora_sd15_basecn_keymap").items()}
    published = {name: key for name, key in recorded.items() if is_adapted(name)}
    for module in json.loads((KEYMAPS / "ctrlora_sd15_lora_modules.json").read_text("utf-8")):
        theirs = lora_names(module["original"].removeprefix(ldm.CONTROL_PREFIX))
        for name, key in zip(lora_names(module["diffusers"]), theirs, strict=True):
            published[name] = f"{ldm.CONTROL_PREFIX}{key}"
    assert len(published) == 246
    assert {name: f"{ldm.CONTROL_PREFIX}{key}" for name, key in ldm.unet_originals(published).items()} == published


def _under(prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in sd15_shapes() if key.startswith(prefix)]


def test_a_real_file_has_1131_tensors() -> None:
    shapes = sd15_shapes()
    assert len(shapes) == 1131
    # as in the published v1-5-pruned-emaonly
    assert shapes["model.diffusion_model.output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["model.diffusion_model.output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["model.diffusion_model.input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes["first_stage_model.decoder.up.1.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert shapes["first_stage_model.encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shapes["cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight"] == (3072, 768)


def test_the_unet_and_the_vae_go_there_and_back() -> None:
    unet = _under(ldm.UNET_PREFIX)
    there = ldm.unet_names(unet)
    assert len(there) == len(unet) == 686
    assert ldm.unet_originals(there.values()) == {new: old for old, new in there.items()}
    vae = _under(ldm.VAE_PREFIX)
    there = ldm.vae_names(vae)
    assert len(there) == len(vae) == 248
    assert ldm.vae_originals(there.values()) == {new: old for old, new in there.items()}


@pytest.mark.parametrize("res_blocks", [(1,), (3, 3), (1, 1, 1), (2, 2, 2, 2)])
def test_any_depth_is_read_from_the_encoder_alone(res_blocks: tuple[int, ...]) -> None:
    layout = ldm.Layout(res_blocks)
    encoder = [f"{name}.weight" for name in ldm.unet_table(layout) if not name.startswith("output_blocks.")]
    assert ldm.layout_of(encoder) == layout
    assert ldm.diffusers_layout_of(ldm.unet_names(encoder).values()) == layout


def test_names_of_nothing_are_left_out() -> None:
    assert ldm.unet_names(["loras_dict.canny.0.down.weight", "label_emb.0.1.weight"]) == {}


@pytest.mark.parametrize("prefix", [*ldm.TEXT_PREFIXES, ""])
def test_every_variant_of_a_text_encoder(prefix: str) -> None:
    names = ["embeddings.position_ids", "embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.bias"]
    assert list(ldm.text_names(prefix + name for name in names).values()) == names[1:]
    assert ldm.text_names(["cond_stage_model.logit_scale"]) == {}


def test_old_vae_folders() -> None:
    name = "encoder.mid_block.attentions.0.{}.weight"
    old = [name.format(part) for part in ("query", "proj_attn", "group_norm")]
    assert list(ldm.modern_vae_names(old).values()) == [
        name.format(part) for part in ("to_q", "to_out.0", "group_norm")
    ]


@pytest.mark.parametrize(
    ("given", "wanted", "got"),
    [
        ((4, 3, 1, 1), (4, 3), (4, 3)),
        ((4, 3), (4, 3, 1, 1), (4, 3, 1, 1)),
        ((4, 3, 3, 3), (4, 3), (4, 3, 3, 3)),
        ((4,), (4,), (4,)),
    ],
)
def test_only_1x1_axes_are_changed(given: tuple[int, ...], wanted: tuple[int, ...], got: tuple[int, ...]) -> None:
    assert tuple(ldm.fitted(torch.zeros(given), wanted).shape) == got
