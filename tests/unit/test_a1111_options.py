"""A1111's settings: which act, which are known and do nothing, which no request may set."""

import pytest

from disegno.core.request import make_request
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.fields import nested
from disegno.serving.a1111.options import (
    OPTIONS,
    a1111_defaults,
    a1111_flags,
    all_settings,
    default_of,
    read_settings,
    request_fields,
)

pytestmark = pytest.mark.unit

OTHER: dict[str, Json] = {"sd_model_checkpoint": "x", "sd_checkpoint_hash": "x", "jpeg_quality": 50, "n_rows": 2}


def other(name: str) -> Json:
    """Return a value that differs from a setting's default."""
    option = OPTIONS[name]
    if name in OTHER:
        return OTHER[name]
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if option.kind == "bool":
        return not option.default
    low, high = option.bounds
    assert isinstance(option.default, int | float)
    value = option.default + 1 if high is None or option.default + 1 <= high else (low or 0)
    return int(value) if option.kind == "int" else float(value)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.to])
def test_a_setting_that_acts_sets_a_field_of_the_request(name: str) -> None:
    settings, notes = read_settings({name: other(name)})
    fields = request_fields(settings, ("init",))
    assert fields[OPTIONS[name].to] == other(name)
    assert not notes
    made = nested({**fields, "init.image": "x"})
    assert make_request(made) != make_request(nested({**request_fields({}, ("init",)), "init.image": "x"}))


def test_the_settings_go_round() -> None:
    everything = all_settings({}, "diorama", "")
    settings, notes = read_settings({**everything, "sd_model_checkpoint": None})
    assert not notes
    assert {name: value for name, value in settings.items() if value != default_of(name)} == {}
    assert len(everything) > len(a1111_defaults())


def test_numbers_look_as_upstream() -> None:
    shown = all_settings({}, "diorama", "")
    assert shown["CLIP_stop_at_last_layers"] == 1.0
    assert isinstance(shown["CLIP_stop_at_last_layers"], float)
    assert isinstance(shown["eta_noise_seed_delta"], int)


def test_a_setting_that_does_nothing_is_reported() -> None:
    settings, notes = read_settings({"token_merging_ratio": 0.5, "samples_save": True})
    assert settings["token_merging_ratio"] == 0.5
    assert notes == ("The setting token_merging_ratio has no effect here.",)


@pytest.mark.parametrize(
    "name", ["outdir_samples", "samples_filename_pattern", "api_useragent", "font", "nope", "__class__"]
)
def test_paths_safety_and_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(WireError):
        read_settings({name: "../../x"})


def test_no_flag_is_a_secret_or_a_path() -> None:
    assert a1111_flags()["api_auth"] is None
    assert not [value for value in a1111_flags().values() if isinstance(value, str) and "/" in value]


def test_settings_of_extensions_and_of_forge_are_passed_over_and_said() -> None:
    given: dict[str, Json] = {
        "control_net_model_cache_size": 5,
        "forge_additional_modules": ["ae.safetensors"],
        "lora_functional": False,  # nothing is asked
        "control_net_no_detectmap": True,  # this one acts
    }
    settings, notes = read_settings(given)
    assert settings == {"control_net_no_detectmap": True}
    assert [note.split()[2] for note in notes] == ["control_net_model_cache_size", "forge_additional_modules"]
    assert all("has no effect" in note for note in notes)
    with pytest.raises(WireError):
        read_settings({"control_net_unit_count": 3})
