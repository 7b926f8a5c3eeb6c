"""What a file is, by the names of its tensors alone: a table of marks, the most particular first.

Names are looked for in one text with a line for each, so that "\\nconv_in." is "a name that begins with conv_in.". The
prefix `control_model.` is taken off first: published control files come with and without it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

CROSS_WIDTHS = {384: "diorama", 768: "sd1", 1024: "sd2", 1280: "sdxl", 2048: "sdxl"}  # 1280: SDXL's refiner
# Families that are known by name only. Looked for first: their marks stand beside those of the others.
_FOREIGN_MARKS = {
    "flux": ("double_blocks.", "_double_blocks_", "single_transformer_blocks", "\ncontrolnet_x_embedder."),
    "qwen-image": (".img_mlp.", ".img_mod.", "_img_mlp_"),
    "auraflow": ("double_layers.0.attn.", "joint_transformer_blocks."),
    "hunyuan-dit": ("\nmlp_t5.", ".mlp_t5."),
    "pixart": (".cross_attn.kv_linear.", "\nadaln_single."),
    "stable-cascade": ("\nclip_txt_mapper.", "\neffnet_mapper.", "\nvquantizer."),
    "svd": (".time_stack.", ".temporal_transformer_blocks."),
    "animatediff": (".motion_modules.",),
    "unclip": ("\nnoise_augmentor.",),
}
_VAE_LATENTS = {16: "sd3"}  # with 4 channels the shapes fit SD 1, 2 and XL alike
# How many numbers a T2I-Adapter looks at at once: squares of 8 x 8 pixels, for SDXL of 16 x 16; grey or coloured
_ADAPTERS = {64: "sd1", 192: "sd1", 256: "sdxl", 768: "sdxl"}
_LOOKS = tuple(f"{prefix}{layer}.weight" for prefix in ("", "adapter.") for layer in ("conv_in", "body.0.in_conv"))
# Of a ControlNet-LLLite, whose shapes tell nothing: which blocks it names
_LLLITE_MARKS = {
    "_transformer_blocks_1_": "sdxl",
    "\nlllite_unet_input_blocks_1_1_": "sd1",
    "\nlllite_unet_down_blocks_0_attentions_": "sd1",
}
_SD3_MARKS = ("joint_blocks.", ".attn.add_q_proj.", "lora_transformer_", "\npos_embed_input.", "_joint_blocks_")
_FAMILY_MARKS = {
    "\ncond_stage_model.transformer.": "sd1",
    "\ncond_stage_model.model.": "sd2",
    **dict.fromkeys(("\nconditioner.", "\nadd_embedding.", "\nlabel_emb.0.", ".label_emb.0."), "sdxl"),
}
_HALVES_UP = (".up.weight", "lora_up.weight", "lora_B.weight", "lora_B.default.weight")
_DOWN = (
    *("lora_layer.down.weight", "lora_down.weight", "lora.down.weight", "lora_A.weight", "lora_A.default.weight"),
    "hada_w1_b",
    ".down",  # a Control-LoRA's
)


@dataclass(frozen=True)
class Kind:
    """A kind of file and its marks: one of `any`, each of `all`, none of `lacks`. `mechanism`: of a control or LoRA."""

    kind: str
    mechanism: str = ""
    any: tuple[str, ...] = ("",)
    all: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def fits(self, text: str) -> bool:
        """Return whether a text of names has the marks."""
        some = any(mark in text for mark in self.any)
        return some and all(mark in text for mark in self.all) and not any(mark in text for mark in self.lacks)


KINDS = (
    Kind("control", "uni-controlnet", any=("\nlocal_adapter.", "\nglobal_adapter.")),
    Kind("control", "unicontrol", any=("\ntask_id_hypernet.", "\ninput_hint_block_list_moe.")),
    Kind("control", "controlnet-xs", any=("\nenc_zero_convs_out.", "\ncontrol_to_base_for_conv_in.", ".ctrl_to_base.")),
    Kind("control", "controlnet-union", any=("\ntask_embedding\n", "\ncontrol_add_embedding.")),
    Kind("control", "control-lora", any=("\nlora_controlnet\n",)),
    Kind(
        "control",
        "ip-adapter-faceid",
        any=("\nimage_proj.perceiver_resampler.", "\nimage_proj.proj.2.weight\n"),
        lacks=("\nimage_proj.proj.3.weight\n",),
    ),
    Kind("control", "controlnet-lllite", any=("\nlllite_unet_",)),
    Kind("control", "ip-adapter", any=("\nimage_proj.", "\nip_adapter.")),
    Kind("upscaler", "esrgan", any=(".rdb1.conv1.weight\n", ".RDB1.conv1.weight\n", ".RDB1.conv1.0.weight\n")),
    Kind(
        "upscaler",
        "compact",
        any=tuple(f"\n{prefix}body.0.weight\n" for prefix in ("", "params.", "params_ema.")),
        all=("body.0.weight\n", "body.1.weight\n", "body.2.bias\n"),
    ),
    Kind("control", "t2i-adapter", any=("\nbody.0.", "\nadapter.body.0.")),
    Kind(
        "control", "controlnet", any=("\ninput_hint_block.", "\ncontrolnet_cond_embedding.", "\ncontrolnet_blocks.0.")
    ),
    Kind(
        "control",
        "ctrlora",
        any=(".lora_layer.down.weight\n",),
        lacks=("\ninput_blocks.0.0.weight\n", "\nconv_in.weight\n", "\nlora_unet_"),
    ),
    Kind("control", "ctrlora-xl", all=("\nconv_in_condition.", "\ncontrolnet_down_blocks.0.")),
    Kind("control", "ctrlora-base", any=("\nzero_convs.0.", "\ncontrolnet_down_blocks.0.")),
    Kind("lora", "loha", any=(".hada_w1_a\n",)),
    Kind("lora", "lokr", any=(".lokr_w1\n", ".lokr_w1_a\n")),
    Kind("lora", "oft", any=(".oft_blocks\n", ".oft_diag\n")),
    Kind("lora", "glora", all=(".a1.weight\n", ".b1.weight\n")),
    Kind("lora", "ia3", any=(".on_input\n",)),
    Kind("lora", "dora", any=(".dora_scale\n", ".lora_magnitude_vector")),
    Kind(
        "lora",
        "lora",
        any=(
            ".lora_down.weight\n",
            ".lora_up.weight\n",
            ".lora_A.",
            "lora.down.weight\n",
        ),
    ),
    Kind("lora", "full", any=(".diff\n", ".w_norm\n")),
    Kind(
        "model",
        any=("\nfirst_stage_model.", "\ncond_stage_model.", "\nconditioner.", "\ntext_encoders."),
        all=("\nmodel.diffusion_model.",),
    ),
    Kind(
        "unet",
        any=(
            *("\nmodel.diffusion_model.", "\njoint_blocks.0.", "\ntransformer_blocks.0.attn.add_q_proj."),
            *("\ndouble_blocks.0.img_attn.", "\nsingle_transformer_blocks.0."),
        ),
    ),
    Kind("unet", all=("\nconv_in.weight\n", "\ntime_embedding.linear_1.", "\nup_blocks.0.")),
    Kind("unet", all=("\ninput_blocks.0.0.weight\n", "\noutput_blocks.0.")),
    Kind("vae", any=("\nencoder.conv_in.", "\ndecoder.conv_in.", "\nfirst_stage_model.")),
    Kind("text", any=("text_model.embeddings.token_embedding.", "\nencoder.block.0.layer.0.SelfAttention.")),
    Kind("text", any=("transformer.resblocks.0.", "\nenc.blk.0.attn_q.")),  # OpenCLIP's; T5 by llama.cpp's names
    Kind("embedding", any=("\nemb_params\n", "\nstring_to_param.", "\nclip_l\n", "\nclip_g\n")),
)
# What is sound, and nothing that this program opens: by what it is called.
_STRANGERS = (
    Kind("a ControlNet-LLLite of Anima, a model of another family", any=("\nlllite_dit_", "\nlllite_conditioning1.")),
    Kind("a GLIGEN adapter", any=("\nposition_net.",)),
    Kind("a T2I-Adapter of style", any=("\nstyle_embedding\n",)),
    Kind("a tiny autoencoder (TAESD), which the setting preview_decoder takes", any=("\n3.conv.0.weight\n",)),
    Kind("a CLIP that reads pictures, by which IP-Adapters look", any=("\nvision_model.", "\nvisual.")),
    Kind("a restorer of faces", any=("stylegan_decoder", ".position_emb\n", "\nposition_emb\n")),
    Kind("an upscaler of another kind than ESRGAN", any=(".residual_group.", "\nconv_before_upsample.")),
    Kind("an estimator of depth", any=("\npretrained.model.", "\nscratch.")),
    Kind("a segmenter (SAM)", any=("\nmask_decoder.",)),
    Kind("a language model", any=("\nmodel.embed_tokens.", "\nmodel.language_model.", "\nblk.0.attn_")),
    Kind("the state of an optimizer", any=(".exp_avg\n",)),
    Kind("a motion module (AnimateDiff)", any=(".motion_modules.",)),
)
_LAYOUTS = (
    Kind(
        "kohya",
        any=(
            *("\nlora_unet_", "\nlora_te_", "\nlora_te1_", "\nlora_transformer_", "\nlycoris_"),
            *("\noft_unet_", "\nlllite_unet_"),
        ),
    ),
    Kind("peft", any=(".lora_A.",)),
    Kind(
        "ldm",
        any=(
            *("input_blocks.", "joint_blocks.", "\nencoder.down.0.", "\nfirst_stage_model.", "\nmiddle_block_out."),
            "\ntransformer_blocks.0.attn.qkv.",
        ),
    ),
    Kind("diffusers", any=("down_blocks.", "transformer_blocks.", "mid_block.")),
)


def text_of(keys: Iterable[str]) -> str:
    """Return the names as the text that marks are looked for in."""
    return "\n" + "\n".join(keys).replace("\ncontrol_model.", "\n").removeprefix("control_model.") + "\n"


def kind_of(text: str, shapes: Shapes) -> Kind | None:
    """Return the first kind whose marks fit, or None. A few vectors as wide as a text encoder are an embedding."""
    found = next((kind for kind in KINDS if kind.fits(text)), None)
    if found is None and len(shapes) <= 4 and all(len(s) in (1, 2) and s[-1] in CROSS_WIDTHS for s in shapes.values()):
        return Kind("embedding")
    return found


def stranger_of(text: str) -> str:
    """Return what a file is that is none of the kinds, in words; "" where nothing tells."""
    named = next((stranger.kind for stranger in _STRANGERS if stranger.fits(text)), "")
    family = foreign_family_of(text)
    return named or (f"a part of a model of {family}" if family else "")


def layout_of(text: str) -> str:
    """Return whose names these are: ldm (the original's), diffusers, kohya, peft, or "" where nothing tells."""
    return next((layout.kind for layout in _LAYOUTS if layout.fits(text)), "")


def foreign_family_of(text: str) -> str:
    """Return the family that the names are of, where it is one that this program does not draw; else ""."""
    return next((family for family, marks in _FOREIGN_MARKS.items() if any(mark in text for mark in marks)), "")


def family_of(kind: str, text: str, shapes: Shapes) -> str:
    """Return the model family that the shapes are of: by the width of the text that they attend to; "" if undecided."""
    if foreign := foreign_family_of(text):
        return foreign
    if any(mark in text for mark in _SD3_MARKS):
        return "sd3"
    if "\nlllite_unet_" in text:
        return next((family for mark, family in _LLLITE_MARKS.items() if mark in text), "")
    if kind == "vae":
        latents = next((s[1] for key, s in shapes.items() if key.endswith("decoder.conv_in.weight") and len(s) == 4), 0)
        return _VAE_LATENTS.get(latents, "")
    if kind == "embedding":
        widest = max((s[-1] for s in shapes.values() if s), default=0)  # SDXL's: 1280, beside CLIP-L's 768
        return "sd3" if "\nt5xxl\n" in text else "sdxl" if "\nclip_g\n" in text else CROSS_WIDTHS.get(widest, "")
    if kind == "text":
        return _text_family(shapes)
    looks = next((shapes[key][1] for key in _LOOKS if len(shapes.get(key, ())) == 4), 0)
    if kind == "control" and looks in _ADAPTERS:
        return _ADAPTERS[looks]
    widths = (_width_of(key, s, shapes) for key, s in shapes.items() if _is_cross_key(key) and len(s) >= 2)
    by_text = next((family for mark, family in _FAMILY_MARKS.items() if mark in text), "")
    return CROSS_WIDTHS.get(next(widths, 0), by_text)


def _is_cross_key(key: str) -> bool:
    ends = ("weight", "hada_w1_b", "lokr_w1", "lokr_w1_b", ".down")
    ours = key.endswith(ends) and not key.endswith(_HALVES_UP)
    return ours and ("attn2.to_k" in key or "attn2_to_k" in key or ".to_k_ip." in key)


def _width_of(key: str, shape: Shape, shapes: Shapes) -> int:
    """Return how wide the text is that a layer with this tensor reads; of LoKr, by both of its factors."""
    stem, lokr, _ = key.partition("lokr_w1")
    if not lokr:
        return shape[1]
    other = shapes.get(f"{stem}lokr_w2") or shapes.get(f"{stem}lokr_w2_b", ())
    return shape[1] * other[1] if len(other) > 1 else 0


def _text_family(shapes: Shapes) -> str:
    table = next((s for key, s in shapes.items() if key.endswith("token_embedding.weight") and len(s) == 2), (0, 0))
    return {768: "sd1", 1024: "sd2", 1280: "sdxl"}.get(table[1], "")


def rank_of(shapes: Shapes) -> int | None:
    """Return the largest rank of the low-rank matrices, or None where there are none."""
    return max((s[0] for key, s in shapes.items() if s and key.endswith(_DOWN)), default=None)


def in_channels_of(shapes: Shapes) -> int | None:
    """Return what the first convolution takes: 4 for latents, 9 for inpainting; None where there is none."""
    ends = ("input_blocks.0.0.weight", "x_embedder.proj.weight")
    first = (s for key, s in shapes.items() if len(s) == 4 and (key == "conv_in.weight" or key.endswith(ends)))
    return next((s[1] for s in first), None)
