"""A1111's txt2img and img2img, field by field: name, type, default, and what it sets here.

The names, types and defaults are those of A1111 1.10's API, with one difference: a width or height that is not given is
the model's own, not 512. A few fields are of other programs that have its API.
"""

from disegno.core.request import InpaintFill
from disegno.serving.a1111.fields import Field

_HR = (("enable_hr", True),)
_MASK = (("mask", "<picture>"),)
_AREA = (*_MASK, ("inpaint_full_res", True))
_NO_RESTORER = "no face restorer is built in"
_DISTILLED = "no model here is told its guidance (Flux)"
FILL: tuple[InpaintFill, ...] = ("fill", "original", "noise", "nothing")  # by the number of inpainting_fill
_SAVING = "save_images decides it"

COMMON = (
    Field("prompt", "str", "", to="prompt"),
    Field("negative_prompt", "str", "", to="negative"),
    Field("styles", "texts", means="`styles`; an unknown one is an error"),
    Field("seed", "int", -1, like="seed", means="`seed`, of the first iteration; -1 is drawn once"),
    Field("subseed", "int", -1, like="subseed", means="`subseed`; -1 is drawn once"),
    Field("subseed_strength", "float", 0, to="subseed_strength"),
    Field(
        "seed_resize_from_h",
        "int",
        -1,
        low=-1,
        high=4096,
        when=(("seed_resize_from_w", 64),),
        means="`seed_height`, with the other side; 0 and -1 are off",
    ),
    Field(
        "seed_resize_from_w",
        "int",
        -1,
        low=-1,
        high=4096,
        when=(("seed_resize_from_h", 64),),
        means="`seed_width`, with the other side; 0 and -1 are off",
    ),
    Field("sampler_name", "str", means="`sampler`, any case, aliases too; a schedule at its end is read"),
    Field("scheduler", "str", means="`schedule`, by name or label"),
    Field("batch_size", "int", 1, to="batch"),
    Field("n_iter", "int", 1, like="batch", means="so many requests, one after the other"),
    Field("steps", "int", 50, to="steps"),
    Field("cfg_scale", "float", 7.0, to="cfg"),
    Field("width", "int", None, like="width", means="`width`, floored to a multiple of 8"),
    Field("height", "int", None, like="height", means="`height`, floored to a multiple of 8"),
    Field("restore_faces", "bool", None, unused=_NO_RESTORER, off=(False,)),
    Field("tiling", "bool", None, like="seamless", means="`seamless`; null is the setting"),
    Field("do_not_save_samples", "bool", False, unused=_SAVING),
    Field("do_not_save_grid", "bool", False, unused=_SAVING),
    Field(
        "eta",
        "float",
        None,
        like="eta",
        means="`eta`; null is the setting eta_ddim or eta_ancestral, where that is changed",
    ),
    Field("denoising_strength", "float", 0.75, like="init.denoise", when=_HR, means="`hires.denoise`"),
    Field("s_min_uncond", "float", None, like="negative_min", means="`negative_min`; null is the setting"),
    Field("s_churn", "float", None, like="churn", means="`churn`; a setting that is not the default wins"),
    Field(
        "s_tmax",
        "float",
        None,
        like="churn_max",
        means="`churn_max`, 0 is no limit; a setting that is not the default wins",
    ),
    Field("s_tmin", "float", None, like="churn_min", means="`churn_min`; a setting that is not the default wins"),
    Field("s_noise", "float", None, like="churn_noise", means="`churn_noise`; a setting that is not the default wins"),
    Field("override_settings", "object", means="settings for this request"),
    Field(
        "override_settings_restore_afterwards",
        "bool",
        True,
        when=(("override_settings", {"eta_ddim": 0.5}),),
        means="false keeps the settings of this request",
    ),
    Field("refiner_checkpoint", "str", None, means="`refiner.model`; empty and None are off"),
    Field(
        "refiner_switch_at",
        "float",
        None,
        like="refiner.at",
        when=(("refiner_checkpoint", "diorama"),),
        means="`refiner.at`; null is 0. The settings refiner_switch_by_sample_steps and hires_fix_refiner_pass count",
    ),
    Field(
        "disable_extra_networks",
        "bool",
        False,
        when=(("prompt", "a cat <lora:x:1>"),),
        means="LoRAs that the prompt names are left out",
    ),
    Field("firstpass_image", "str", None, unused="start from a picture with img2img", off=("",)),
    Field("comments", "object", None, unused="it is A1111's own", off=({},)),
    Field("force_task_id", "str", means="the task's name for /internal/progress"),
    Field("sampler_index", "str", "Euler", means="`sampler`, where sampler_name is empty"),
    Field("script_name", "str", means="one of the scripts below, in any case"),
    Field(
        "script_args",
        "list",
        None,
        when=(("script_name", "X/Y/Z plot"),),
        means="the script's arguments, in A1111's order",
    ),
    Field("send_images", "bool", True, means="false: no pictures in the answer"),
    Field(
        "save_images",
        "bool",
        False,
        means="a grid stands before the pictures; they are kept with their jobs either way",
    ),
    Field("alwayson_scripts", "object", means="ControlNet's units, and the always-on scripts below"),
    Field("infotext", "str", means="fills every field that is not given"),
    Field("clip_skip", "int", None, like="clip_skip", means="`clip_skip`, as the setting CLIP_stop_at_last_layers"),
    Field("distilled_cfg_scale", "float", None, unused=_DISTILLED, off=(3.5,)),
)
"""What both forms have. `clip_skip` is SD.Next's name for the setting CLIP_stop_at_last_layers; the last is Forge's."""

TXT2IMG = (
    *COMMON,
    Field("enable_hr", "bool", False, means="a second pass: `hires`"),
    Field(
        "firstphase_width",
        "int",
        0,
        low=0,
        high=4096,
        when=(*_HR, ("firstphase_height", 64)),
        means="the first pass's width; width is the final one then",
    ),
    Field(
        "firstphase_height",
        "int",
        0,
        low=0,
        high=4096,
        when=(*_HR, ("firstphase_width", 64)),
        means="the first pass's height; height is the final one then",
    ),
    Field("hr_scale", "float", 2.0, like="hires.scale", when=_HR, means="`hires.scale`"),
    Field("hr_upscaler", "str", None, when=_HR, means="`hires.upscaler`; null is Latent, an unknown one is an error"),
    Field("hr_second_pass_steps", "int", 0, low=0, high=1000, when=_HR, means="`hires.steps`; 0 is the first pass's"),
    Field("hr_resize_x", "int", 0, low=0, high=8192, when=_HR, means="`hires.width`; 0 is off"),
    Field("hr_resize_y", "int", 0, low=0, high=8192, when=_HR, means="`hires.height`; 0 is off"),
    Field("hr_checkpoint_name", "str", None, when=_HR, means="`hires.model`"),
    Field("hr_sampler_name", "str", None, when=_HR, means="`hires.sampler`"),
    Field("hr_scheduler", "str", None, when=_HR, means="`hires.schedule`"),
    Field("hr_cfg", "float", None, like="hires.cfg", when=_HR, means="`hires.cfg`; null is the first pass's"),
    Field("hr_distilled_cfg", "float", None, unused=_DISTILLED, off=(3.5,)),
    Field(
        "hr_additional_modules",
        "list",
        None,
        unused="the setting sd_vae chooses a VAE, and text encoders are the model's own",
        off=([], ["Use same choices"]),
    ),
    Field("hr_prompt", "str", "", when=_HR, means="`hires.prompt`"),
    Field("hr_negative_prompt", "str", "", when=_HR, means="`hires.negative`"),
)
_DENOISING = Field("denoising_strength", "float", 0.75, like="init.denoise", means="`init.denoise`")
IMG2IMG = (
    *(_DENOISING if row.name == _DENOISING.name else row for row in COMMON),
    Field("init_images", "list", means="`init.image`; several are one request each"),
    Field("resize_mode", "int", 0, low=0, high=3, means="`init.resize`: 0 stretch, 1 crop, 2 fill, 3 latent"),
    Field("image_cfg_scale", "float", None, like="image_cfg", means="`image_cfg`"),
    Field("mask", "str", means="`init.mask`, white is drawn anew"),
    Field("mask_blur", "int", None, like="init.mask_blur", when=_MASK, means="`init.mask_blur` and `init.mask_blur_y`"),
    Field("mask_blur_x", "int", 4, like="init.mask_blur", when=_MASK, means="`init.mask_blur`"),
    Field("mask_blur_y", "int", 4, like="init.mask_blur", when=_MASK, means="`init.mask_blur_y`"),
    Field("mask_round", "bool", True, when=_MASK, means="`init.mask_mode`: true binary, false soft"),
    Field(
        "inpainting_fill",
        "int",
        0,
        low=0,
        high=3,
        when=_MASK,
        means="`init.fill`: 0 fill, 1 original, 2 noise, 3 nothing",
    ),
    Field("inpaint_full_res", "bool", True, when=_MASK, means="`init.only_masked`"),
    Field("inpaint_full_res_padding", "int", 0, like="init.padding", when=_AREA, means="`init.padding`"),
    Field("inpainting_mask_invert", "int", 0, low=0, high=1, when=_MASK, means="`init.invert`"),
    Field("initial_noise_multiplier", "float", None, like="init.noise", means="`init.noise`"),
    Field("latent_mask", "str", None, unused="send the mask as `mask`", off=("",)),
    Field("include_init_images", "bool", False, means="true: the echo repeats the pictures"),
)
