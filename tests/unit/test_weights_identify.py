"""What a file is, from header, names and shapes: real names and sizes, holes for numbers."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from disegno.core.errors import ModelFileError, UnknownKind, WrongFamily
from disegno.weights.identify import FileCard, identify, require_family

pytestmark = pytest.mark.unit


def _headers() -> ModuleType:
    path = Path(__file__).parents[1] / "corpus" / "headers.py"
    spec = importlib.util.spec_from_file_location("headers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["headers"] = module
    spec.loader.exec_module(module)
    return module


headers = _headers()
bare = {key.removeprefix("control_model."): shape for key, shape in headers.controlnet().items()}

XS_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


def xs(width: int) -> dict[str, tuple[int, ...]]:
    """Return some of a published ControlNet-XS's names and shapes, for a text of this width."""
    to_k = "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    return {"enc_zero_convs_out.0.0.weight": (320, 64, 1, 1), to_k: (64, width), "scale_list": (25,)}


# name: shapes, then kind, mechanism, family, layout
FILES = {
    "sd1": (headers.model(), "model", "", "sd1", "ldm"),
    "sd2": (headers.model(1024), "model", "", "sd2", "ldm"),
    "sd2 turbo": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
            "conditioner.embedders.0.model.ln_final.weight": (1024,),
        },
        *("model", "", "sd2", "ldm"),
    ),
    "sdxl": (headers.model(2048), "model", "", "sdxl", "ldm"),
    "sdxl refiner": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": (384, 4, 3, 3),
            "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (768, 1280),
            "model.diffusion_model.label_emb.0.0.weight": (1536, 2560),
            "conditioner.embedders.0.model.text_projection": (1280, 1280),
        },
        *("model", "", "sdxl", "ldm"),
    ),
    "sdxl unet": (
        {
            "conv_in.weight": (320, 4, 3, 3),
            "time_embedding.linear_1.weight": (1280, 320),
            "add_embedding.linear_1.weight": (1280, 2816),
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
            "up_blocks.0.resnets.0.conv1.weight": (1280, 2560, 3, 3),
        },
        *("unet", "", "sdxl", "diffusers"),
    ),
    "sdxl unet, original": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
            "model.diffusion_model.label_emb.0.2.bias": (1280,),
        },
        *("unet", "", "sdxl", "ldm"),
    ),
    "sd3": (
        {
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (3, 4),
            "first_stage_model.encoder.conv_in.weight": (1,),
        },
        *("model", "", "sd3", "ldm"),
    ),
    "controlnet 1.1": (headers.controlnet(), "control", "controlnet", "sd1", "ldm"),
    "controlnet without prefix": (bare, "control", "controlnet", "sd1", "ldm"),
    "controlnet difference": (bare | {"difference": (1,)}, "control", "controlnet", "sd1", "ldm"),
    "controlnet 1.0, whole": (headers.model() | headers.controlnet(), "control", "controlnet", "sd1", "ldm"),
    "controlnet diffusers": (headers.controlnet("diffusers"), "control", "controlnet", "sd1", "diffusers"),
    "controlnet sd2": (headers.controlnet(width=1024), "control", "controlnet", "sd2", "ldm"),
    "controlnet sdxl": (headers.controlnet(width=2048), "control", "controlnet", "sdxl", "ldm"),
    "controlnet diorama": (headers.controlnet("diffusers", 384), "control", "controlnet", "diorama", "diffusers"),
    "controlnet sd3": (
        {"controlnet_blocks.0.weight": (1, 1), "transformer_blocks.0.attn.add_q_proj.weight": (1, 1)},
        *("control", "controlnet", "sd3", "diffusers"),
    ),
    "ctrlora base": (headers.ctrlora_base(), "control", "ctrlora-base", "sd1", "ldm"),
    "ctrlora base, cleaned": (
        headers.ctrlora_base("diffusers", stale=False),
        "control",
        "ctrlora-base",
        "sd1",
        "diffusers",
    ),
    "ctrlora condition": (headers.ctrlora_condition(), "control", "ctrlora", "sd1", "ldm"),
    "ctrlora condition, ours": (
        headers.ctrlora_condition("diffusers", 32, 384),
        "control",
        "ctrlora",
        "diorama",
        "diffusers",
    ),
    "ctrlora, whole": (headers.model() | headers.ctrlora_base(), "control", "ctrlora-base", "sd1", "ldm"),
    "unicontrol": (
        headers.model() | {"control_model.task_id_hypernet.0.weight": (1, 1)},
        "control",
        "unicontrol",
        "sd1",
        "ldm",
    ),
    "uni-controlnet": (headers.model() | {"local_adapter.x": (1,)}, "control", "uni-controlnet", "sd1", "ldm"),
    "controlnet-xs": ({"enc_zero_convs_out.0.0.weight": (1, 1, 1, 1)}, "control", "controlnet-xs", "", ""),
    **{f"xs {family}": (xs(width), "control", "controlnet-xs", family, "ldm") for width, family in XS_WIDTHS.items()},
    "t2i-adapter": ({"body.0.block1.weight": (1, 1, 3, 3)}, "control", "t2i-adapter", "", ""),
    "control-lora": ({"lora_controlnet": (0,), "input_hint_block.0.weight": (1,)}, "control", "control-lora", "", ""),
    "control-lora sdxl": (
        {"lora_controlnet": (0,), "label_emb.0.0.up": (1280, 256), "input_blocks.4.1.attn2.to_k.down": (256, 2048)},
        *("control", "control-lora", "sdxl", "ldm"),
    ),
    "control-lora sd1": (
        {"lora_controlnet": (0,), "input_blocks.1.1.attn2.to_k.down": (128, 768)},
        *("control", "control-lora", "sd1", "ldm"),
    ),
    "controlnet-lllite": (
        {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": (64, 640)},
        *("control", "controlnet-lllite", "", "kohya"),
    ),
    "ip-adapter": ({"image_proj.proj.weight": (3072, 1024)}, "control", "ip-adapter", "", ""),
    "lora": (headers.lora(modules=4), "lora", "lora", "sd1", "kohya"),
    "lora sdxl": (headers.lora(2048, modules=4), "lora", "lora", "sdxl", "kohya"),
    "lora peft": ({"unet.down_blocks.0.attn2.to_k.lora_A.weight": (8, 1024)}, "lora", "lora", "sd2", "peft"),
    "loha": (
        {"lora_unet_x_attn2_to_k.hada_w1_a": (320, 8), "lora_unet_x_attn2_to_k.hada_w1_b": (8, 768)},
        "lora",
        "loha",
        "sd1",
        "kohya",
    ),
    "lokr sdxl": (
        {"lora_unet_x_attn2_to_k.lokr_w1": (4, 4), "lora_unet_x_attn2_to_k.lokr_w2_b": (8, 512)},
        *("lora", "lokr", "sdxl", "kohya"),
    ),
    "glora": ({f"lora_unet_x.{name}.weight": (4, 4) for name in ("a1", "b1")}, "lora", "glora", "", "kohya"),
    "ia3": ({"lora_unet_x.weight": (320,), "lora_unet_x.on_input": ()}, "lora", "ia3", "", "kohya"),
    "oft": ({"oft_unet_x.oft_blocks": (4, 80, 80)}, "lora", "oft", "", "kohya"),
    "norms": ({"lora_unet_x.w_norm": (320,), "lora_unet_x.b_norm": (320,)}, "lora", "full", "", "kohya"),
    "lora of a named adapter": ({"unet.x.attn2.to_k.lora_A.ink.weight": (8, 768)}, "lora", "lora", "sd1", "peft"),
    "lora flux": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (8, 3072)},
        *("lora", "lora", "flux", "peft"),
    ),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "unet", "", "flux", ""),
    "flux diffusers": (
        {"transformer_blocks.0.attn.add_q_proj.weight": (1, 1), "single_transformer_blocks.0.attn.to_q.weight": (1, 1)},
        *("unet", "", "flux", "diffusers"),
    ),
    "svd": (
        headers.model(1024) | {"model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight": (320,)},
        *("model", "", "svd", "ldm"),
    ),
    "lokr": ({"lora_unet_x.lokr_w1": (4, 4), "lora_unet_x.lokr_w2": (80, 192)}, "lora", "lokr", "", "kohya"),
    "dora": ({**headers.lora(modules=4), "lora_unet_x.dora_scale": (1, 4)}, "lora", "dora", "sd1", "kohya"),
    "lora of text alone": (
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 768)},
        "lora",
        "lora",
        "",
        "kohya",
    ),
    "full difference": ({"lora_unet_x.diff": (320, 320)}, "lora", "full", "", "kohya"),
    "vae": ({"encoder.conv_in.weight": (128, 3, 3, 3), "encoder.down.0.x": (1,)}, "vae", "", "", "ldm"),
    "vae sd3": (
        {"decoder.conv_in.weight": (512, 16, 3, 3), "encoder.down_blocks.0.x": (1,)},
        "vae",
        "",
        "sd3",
        "diffusers",
    ),
    "text": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "text", "", "sd1", ""),
    "text clip_g": ({"text_model.embeddings.token_embedding.weight": (49408, 1280)}, "text", "", "sdxl", ""),
    "text clip_g, OpenCLIP's": (
        {"token_embedding.weight": (49408, 1280), "transformer.resblocks.0.ln_1.weight": (1280,)},
        *("text", "", "sdxl", ""),
    ),
    "embedding sdxl": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "", "sdxl", ""),
    "embedding": ({"emb_params": (2, 768)}, "embedding", "", "sd1", ""),
    "embedding, one vector": ({"<cat>": (1024,)}, "embedding", "", "sd2", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_known_by_their_tensors(name: str, tmp_path: Path) -> None:
    shapes, kind, mechanism, family, layout = FILES[name]
    card = identify(headers.write_header(tmp_path / "anything.ckpt", shapes))
    assert (card.kind, card.mechanism, card.family, card.layout) == (kind, mechanism, family, layout)
    assert (card.num_tensors, card.dtype) == (len(shapes), "fp16")


def test_a_card_tells_what_its_header_tells(tmp_path: Path) -> None:
    words = {
        "disegno.mechanism": "ctrlora",
        "disegno.family": "diorama",
        "disegno.name": "palette",
        "disegno.annotator": "palette",
        "disegno.base_sha256": "ab" * 32,
        "modelspec.thumbnail": "x" * 10_000,
    }
    card = identify(headers.write_header(tmp_path / "a.safetensors", headers.ctrlora_condition("diffusers", 32), words))
    assert (card.family, card.name, card.annotator, card.base_sha256) == ("diorama", "palette", "palette", "ab" * 32)
    assert (card.rank, card.mechanism) == (32, "ctrlora")
    assert "modelspec.thumbnail" not in card.metadata


@pytest.mark.parametrize(
    ("shapes", "words", "prediction", "in_channels"),
    [
        (headers.model(), {}, "epsilon", 4),
        (headers.model(in_channels=9), {}, "epsilon", 9),
        (headers.model(1024), {}, None, 4),
        (headers.model(1024), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v", 4),
        (headers.model(2048) | {"v_pred": ()}, {}, "v", 4),
        (headers.model(), {"modelspec.prediction_type": "v"}, "v", 4),
    ],
)
def test_what_a_model_predicts(
    shapes: dict[str, tuple[int, ...]], words: dict[str, str], prediction: str | None, in_channels: int, tmp_path: Path
) -> None:
    card = identify(headers.write_header(tmp_path / "a.safetensors", shapes, words))
    assert (card.prediction, card.in_channels) == (prediction, in_channels)


@pytest.mark.parametrize(
    "architecture",
    ["stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-refiner", "stable-diffusion-xl-v1-base/lora"],
)
def test_a_header_says_the_family_where_the_shapes_do_not(architecture: str, tmp_path: Path) -> None:
    words = {"modelspec.architecture": architecture}
    card = identify(headers.write_header(tmp_path / "a.safetensors", {"lora_unet_x.lora_down.weight": (4, 320)}, words))
    assert (card.kind, card.family) == ("lora", "sdxl")


@pytest.mark.parametrize(
    "control",
    [
        *("controlnet 1.1", "controlnet sd2", "controlnet sdxl", "ctrlora condition", "lora sdxl"),
        *("unicontrol", "uni-controlnet", "xs sd1", "xs sd2", "xs sdxl"),
    ],
)
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3", "diorama"])
def test_a_wrong_pair_is_refused_at_once(control: str, family: str, tmp_path: Path) -> None:
    """In under 100 ms, from a file of its real size (1.4 GB for a ControlNet)."""
    path = headers.write_header(tmp_path / "lineart.safetensors", FILES[control][0])
    own = FILES[control][3]
    begin = time.process_time()
    if own == family:
        require_family(identify(path), family)
    else:
        with pytest.raises(
            WrongFamily, match=rf"lineart\.safetensors is for {own}, the open model is {family}\. Choose an? "
        ):
            require_family(identify(path), family)
    assert time.process_time() - begin < 0.1


def test_the_words_of_a_wrong_pair() -> None:
    with pytest.raises(WrongFamily) as error:
        require_family(FileCard(Path("lineart.safetensors"), "control", family="sd1"), "sd3")
    expected = "lineart.safetensors is for sd1, the open model is sd3. Choose an sd3 control or an sd1 model."
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lllite_dit_blocks_0_self_attn_q_proj.down.weight", "is a ControlNet-LLLite of Anima"),
        ("down_blocks.0.motion_modules.0.x.weight", "is a motion module"),
        ("clip_txt_mapper.weight", "is a part of a model of stable-cascade"),
        ("vision_model.x.weight", "is a CLIP that reads pictures"),
    ],
)
def test_what_cannot_be_used_is_called_by_its_name(key: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownKind, match=f"x.pt {words}"):
        identify(headers.write_header(tmp_path / "x.pt", {key: (1, 1, 1)}))


def test_a_file_of_nothing_known_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = headers.write_header(tmp_path / "esrgan.pth", {"body.conv_first.weight": (64, 3, 3, 3)})
    with pytest.raises(UnknownKind, match=r"esrgan\.pth is sound, but .*body\.conv_first"):
        identify(path)


def _folder(path: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(value), "utf-8")
    return path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "model_index.json": {"_class_name": "StableDiffusionPipeline"},
                "unet/config.json": {"cross_attention_dim": 1024, "in_channels": 9},
                "scheduler/scheduler_config.json": {"prediction_type": "v_prediction"},
            },
            ("model", "", "sd2", "v", 9),
        ),
        (
            {
                "model_index.json": {"_class_name": "StableDiffusion3Pipeline"},
                "transformer/config.json": {"in_channels": 16},
            },
            ("model", "", "sd3", "flow", 16),
        ),
        (
            {
                "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
                "unet/config.json": {
                    "cross_attention_dim": 2048,
                    "addition_embed_type": "text_time",
                    "in_channels": 9,
                },
                "text_encoder/config.json": {"hidden_act": "quick_gelu"},
                "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
            },
            ("model", "", "sdxl", "epsilon", 9),
        ),
        (
            {
                "model_index.json": {"_class_name": "StableDiffusionXLImg2ImgPipeline"},
                "unet/config.json": {"cross_attention_dim": 1280, "in_channels": 4},
            },
            ("model", "", "sdxl", None, 4),
        ),
        (
            {
                "config.json": {
                    "_class_name": "UNet2DConditionModel",
                    "cross_attention_dim": 2048,
                    "addition_embed_type": "text_time",
                }
            },
            ("unet", "", "sdxl", None, None),
        ),
        (
            {"config.json": {"_class_name": "ControlNetModel", "cross_attention_dim": 2048, "in_channels": 4}},
            ("control", "controlnet", "sdxl", None, 4),
        ),
        ({"config.json": {"architectures": ["CLIPTextModel"], "hidden_size": 768}}, ("text", "", "sd1", None, None)),
    ],
)
def test_folders_are_known_by_their_json(
    files: dict[str, object], expected: tuple[str, str, str, str | None, int | None], tmp_path: Path
) -> None:
    card = identify(_folder(tmp_path / "folder", files))
    assert (card.kind, card.mechanism, card.family, card.prediction, card.in_channels) == expected


def test_a_folder_that_draws_with_another_network_is_named(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "model_index.json": {"_class_name": "FluxPipeline"},
        "transformer/config.json": {"_class_name": "FluxTransformer2DModel"},
    }
    with pytest.raises(UnknownKind, match="a FluxPipeline folder, which draws with a FluxTransformer2DModel"):
        identify(_folder(tmp_path / "folder", files))


@pytest.mark.parametrize(
    "text", ["[1]", "{", "[" * 100_000, '{"_class_name": "os.system"}', '{"architectures": 3}', ""]
)
def test_a_bad_folder_is_a_typed_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFileError):
        identify(tmp_path)
