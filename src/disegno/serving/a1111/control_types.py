"""What A1111's ControlNet extension knows by name: its modules, and the types of control they and models belong to.

The names, labels, order and sliders are those of sd-webui-controlnet 1.1.455, so that a client's choice means here what
it means there. Which of the modules can be used is decided by the annotators that are installed: see `modules.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TAGS = (
    *("All", "Canny", "Depth", "IP-Adapter", "Inpaint", "Instant-ID", "InstructP2P", "Lineart", "MLSD", "NormalMap"),
    *("OpenPose", "Recolor", "Reference", "Revision", "Scribble", "Segmentation", "Shuffle", "SoftEdge", "SparseCtrl"),
    *("T2I-Adapter", "Tile"),
)
_UNION = frozenset(
    ("Canny", "Depth", "Inpaint", "Lineart", "MLSD", "NormalMap", "OpenPose", "Scribble", "Segmentation", "SoftEdge")
) | {"Tile"}
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "InstructP2P": ("ip2p",),
    "Segmentation": ("seg",),
    "NormalMap": ("normal",),
    "T2I-Adapter": ("t2i_adapter", "t2iadapter", "t2ia"),
    "IP-Adapter": ("ip_adapter", "ipadapter"),
    "OpenPose": ("densepose",),
    "Instant-ID": ("instant_id", "instantid"),
    "Scribble": ("sketch",),
    "Tile": ("blur",),
}


@dataclass(frozen=True)
class Slider:
    """One number that a module can be given: processor_res, threshold_a or threshold_b, in this order."""

    name: str
    value: float
    min: float
    max: float
    step: float


RESOLUTION = Slider("Resolution", 512, 64, 2048, 8)


@dataclass(frozen=True)
class Known:
    """A module of the extension: its name, the label that forms show, its tags and its sliders."""

    name: str
    label: str
    tags: tuple[str, ...]
    sliders: tuple[Slider, ...]
    model_free: bool = False


def _known(
    name: str,
    label: str = "",
    tags: str = "",
    *sliders: Slider,
    resolution: Slider | None = RESOLUTION,
    free: bool = False,
) -> Known:
    return Known(name, label or name, tuple(tags.split()), (*((resolution,) if resolution else ()), *sliders), free)


_FIDELITY = Slider("Style Fidelity (only for Balanced mode)", 0.5, 0.0, 1.0, 0.01)
_GAMMA = Slider("Gamma Correction", 1.0, 0.1, 2.0, 0.001)
_NOISE = Slider("Noise Augmentation", 0.0, 0.0, 1.0, 0.01)
_VARIATION = Slider("Variation", 8.0, 3.0, 32.0, 1.0)
_SAFE_STEPS = Slider("Safe Steps", 2, 0, 10, 1)
_NEAR, _FAR = Slider("Remove Near %", 0, 0, 100, 0.1), Slider("Remove Background %", 0, 0, 100, 0.1)

KNOWN = (
    _known("none", tags="InstructP2P"),
    _known("ip-adapter-auto", tags="IP-Adapter"),
    _known("tile_resample", "", "Tile", Slider("Down Sampling Rate", 1.0, 1.0, 8.0, 0.01)),
    _known("pidinet", "softedge_pidinet", "SoftEdge"),
    _known("oneformer_ade20k", "seg_ofade20k", "Segmentation"),
    _known("pidinet_scribble", "scribble_pidinet", "Scribble SparseCtrl"),
    _known("revision_clipvision", "", "Revision", _NOISE, free=True),
    _known("reference_only", "", "Reference", _FIDELITY, free=True),
    _known("recolor_luminance", "", "Recolor", _GAMMA),
    _known("openpose_full", tags="OpenPose"),
    _known("normal_bae", tags="NormalMap"),
    _known(
        "mlsd",
        "",
        "MLSD",
        Slider("MLSD Value Threshold", 0.1, 0.01, 2.0, 0.01),
        Slider("MLSD Distance Threshold", 0.1, 0.01, 20.0, 0.01),
    ),
    _known("lineart_standard", "lineart_standard (from white bg & black line)", "Lineart"),
    _known("ip-adapter_clip_sd15", "ip-adapter_clip_h", "IP-Adapter"),
    _known("inpaint_only", tags="Inpaint", resolution=None),
    _known("depth", "depth_midas", "Depth"),
    _known("canny", "", "Canny", Slider("Low Threshold", 100, 1, 255, 1), Slider("High Threshold", 200, 1, 255, 1)),
    _known("invert", "invert (from white bg & black line)", "Canny Lineart MLSD", resolution=None),
    _known("tile_colorfix+sharp", "", "Tile", _VARIATION, Slider("Sharpness", 1.0, 0.0, 2.0, 0.01)),
    _known("tile_colorfix", "", "Tile", _VARIATION),
    _known("threshold", "", "", Slider("Binarization Threshold", 127, 0, 255, 0.01)),
    _known("clip_vision", "t2ia_style_clipvision", "T2I-Adapter"),
    _known("pidinet_sketch", "t2ia_sketch_pidi", "T2I-Adapter"),
    _known("color", "t2ia_color_grid", "T2I-Adapter"),
    _known("softedge_teed", "", "SoftEdge", _SAFE_STEPS),
    _known("pidinet_safe", "softedge_pidisafe", "SoftEdge"),
    _known("hed_safe", "softedge_hedsafe", "SoftEdge"),
    _known("hed", "softedge_hed", "SoftEdge"),
    _known("softedge_anyline", "", "SoftEdge", _SAFE_STEPS, resolution=Slider("Resolution", 1280, 64, 2048, 8)),
    _known("shuffle", tags="Shuffle", resolution=None),
    _known("segmentation", "seg_ufade20k", "Segmentation"),
    _known("oneformer_coco", "seg_ofcoco", "Segmentation"),
    _known("anime_face_segment", "seg_anime_face", "Segmentation"),
    _known("scribble_xdog", "", "Scribble SparseCtrl", Slider("XDoG Threshold", 32, 1, 64, 0.01)),
    _known("scribble_hed", tags="Scribble SparseCtrl"),
    _known("revision_ignore_prompt", "", "Revision", _NOISE, free=True),
    _known("reference_adain+attn", "", "Reference", _FIDELITY, free=True),
    _known("reference_adain", "", "Reference", _FIDELITY, free=True),
    _known("recolor_intensity", "", "Recolor", _GAMMA),
    _known("openpose_hand", tags="OpenPose"),
    _known("openpose_faceonly", tags="OpenPose"),
    _known("openpose_face", tags="OpenPose"),
    _known("openpose", tags="OpenPose"),
    _known("normal_map", "normal_midas", "NormalMap", Slider("Normal Background Threshold", 0.4, 0.0, 1.0, 0.01)),
    _known("normal_dsine", "", "NormalMap", Slider("Fov", 60, 0, 360, 0.1), Slider("Iterations", 5, 1, 20, 1)),
    _known("mobile_sam", tags="Segmentation"),
    _known(
        "mediapipe_face", "", "", Slider("Max Faces", 1, 1, 10, 1), Slider("Min Face Confidence", 0.5, 0.01, 1.0, 0.01)
    ),
    _known("lineart", "lineart_realistic", "Lineart"),
    _known("lineart_coarse", tags="Lineart"),
    _known("lineart_anime_denoise", tags="Lineart"),
    _known("lineart_anime", tags="Lineart"),
    _known("ip-adapter_pulid", tags="IP-Adapter", resolution=None),
    _known("ip-adapter_face_id_plus", tags="IP-Adapter"),
    _known("ip-adapter_face_id", tags="IP-Adapter"),
    _known("ip-adapter_clip_sdxl_plus_vith", tags="IP-Adapter"),
    _known("ip-adapter_clip_sdxl", "ip-adapter_clip_g", "IP-Adapter"),
    _known("instant_id_face_keypoints", tags="Instant-ID"),
    _known("instant_id_face_embedding", tags="Instant-ID"),
    _known("inpaint_only+lama", tags="Inpaint", resolution=None),
    _known("inpaint", "inpaint_global_harmonious", "Inpaint", resolution=None),
    _known("facexlib", resolution=None),
    _known("dw_openpose_full", tags="OpenPose"),
    _known("depth_zoe", tags="Depth"),
    _known("depth_leres++", "", "Depth", _NEAR, _FAR),
    _known("depth_leres", "", "Depth", _NEAR, _FAR),
    _known("depth_hand_refiner", tags="Depth"),
    _known("depth_anything_v2", tags="Depth"),
    _known("depth_anything", tags="Depth"),
    _known("densepose_parula", "densepose_parula (black bg & blue torso)", "OpenPose"),
    _known("densepose", "densepose (pruple bg & purple torso)", "OpenPose"),  # typos: ignore, the label is theirs
    _known("blur_gaussian", "", "Tile", Slider("Sigma", 9.0, 0.01, 64.0, 0.01)),
    _known("animal_openpose", tags="OpenPose"),
)
"""All 72, in the order in which /controlnet/module_list gives them."""


def models_of(tag: str, models: Sequence[str]) -> list[str]:
    """Return "None" and the models whose names tell that they belong to a type of control."""
    words = (tag.lower(), *_ALIASES.get(tag, ()), *(("union",) if tag in _UNION else ()))
    return ["None", *(name for name in models if name != "None" and any(word in name.lower() for word in words))]


def control_type(tag: str, modules: Sequence[tuple[str, tuple[str, ...]]], models: Sequence[str]) -> dict[str, object]:
    """Return a row of /controlnet/control_types. `modules`: each one's label and tags, in order."""
    if tag == "All":
        labels, named = [label for label, _ in modules], ["None", *(name for name in models if name != "None")]
        return {"module_list": labels, "model_list": named, "default_option": "none", "default_model": "None"}
    labels = ["none", *(label for label, tags in modules if tag in tags and label != "none")]
    named = models_of(tag, models)
    newest = (name for name in named if "11" in name.partition("[")[0])
    return {
        "module_list": labels,
        "model_list": named,
        "default_option": labels[1] if len(labels) > 1 else "none",
        "default_model": next(newest, named[1] if len(named) > 1 else "None"),
    }
