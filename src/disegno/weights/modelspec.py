"""The words of a header by which other programs know what a file is: Stability AI's Model Metadata Standard 1.0.0.

Source: https://github.com/Stability-AI/ModelSpec
"""

from disegno.weights.card import FileCard

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
}
REFINER = "stable-diffusion-xl-v1-refiner"  # of the family sdxl
_ADAPTERS = {
    "controlnet": "/control-net",
    "control-lora": "/control-lora",
    "ctrlora": "/ctrlora",
    "ctrlora-base": "/ctrlora-base",
    "lora": "/lora",
}
_IMPLEMENTATIONS = {"ldm": "https://github.com/CompVis/stable-diffusion", "diffusers": "diffusers"}
_PREDICTIONS = {"epsilon": "epsilon", "v": "v"}


def words_of(card: FileCard, layout: str) -> dict[str, str]:
    """Return the header's words for a file with this card whose tensors have the names of `layout` (ldm or diffusers).

    Words that the card's own header already had are kept where this program does not know better.
    """
    kind = card.mechanism or card.kind
    refines = card.family == "sdxl" and card.metadata.get("modelspec.architecture", "").startswith(REFINER)
    architecture = REFINER if refines else _ARCHITECTURES.get(card.family, card.family or "unknown")
    words = dict(card.metadata) | {
        "format": "pt",  # transformers refuses a file without it
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture + _ADAPTERS.get(kind, ""),
        "modelspec.implementation": _IMPLEMENTATIONS.get(layout, layout or "unknown"),
        "modelspec.title": card.name or card.path.stem,
    }
    if card.prediction in _PREDICTIONS:
        words["modelspec.prediction_type"] = _PREDICTIONS[card.prediction]
    if card.annotator:
        words["modelspec.preprocessor"] = card.annotator
    return words
