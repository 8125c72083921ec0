"""What a program may ask for: the settings by their own names, units and bounds, within a server's limits (P25, C1)."""

import pytest
from pydantic import ValidationError

from lace_lora import commissions, config
from lace_lora.commissions import Limits
from lace_lora.config import Config
from lace_lora.declarations import bounds_of, choices_of, unit_of
from lace_lora.errors import SettingsError

SETTINGS = config.load(preset="none", num_images=24, guidance_scale=2.5)
MODEL = commissions.commission_model(SETTINGS, Limits())


def fault(values):
    """The sentence about a request that is not taken."""
    with pytest.raises(ValidationError) as raised:
        MODEL.model_validate(values)
    return commissions.faults(raised.value.errors(), MODEL)


def test_names_help_units_bounds_and_choices_are_those_of_the_declarations():
    """P25: the description of the door cannot differ from the settings; only what a server bounds is tighter."""
    for name in commissions.NAMES:
        declared, field = Config.model_fields[name], MODEL.model_fields[name]
        assert field.description == declared.description and unit_of_extra(field) == unit_of(declared)
        assert choices_of(field) == choices_of(declared)
        if name not in Limits().most() and name != "prompts":
            assert bounds_of(field) == bounds_of(declared), name


def unit_of_extra(field):
    return field.json_schema_extra["unit"]


def test_what_is_left_out_is_as_the_servers_settings_say():
    """P25."""
    values = MODEL().model_dump()
    assert values.keys() == set(commissions.NAMES)
    assert values["guidance_scale"] == 2.5 and values["num_images"] == 24
    assert commissions.commission_model(SETTINGS, Limits(images=3))().num_images == 3


def test_no_setting_that_names_a_file_may_be_asked_for():
    """P25: a request never says what is read, or where something is written."""
    named = {"prompts_file", "start_picture", "sheet_name", "images_dir", "lora_output_dir", "run_name", "vary",
             "favourites_of", "pretrained_model", "refiner_model", "vae_model", "cache_dir", "shard"}  # fmt: skip
    assert not named & set(commissions.NAMES)
    for name in named:
        assert f"No setting called '{name}'" in fault({name: "../../x"})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_images": 33}, "num_images must be 1 to 32 (pictures)."),
        ({"num_images": True}, "num_images must be 1 to 32 (pictures)."),
        ({"num_images": "3"}, "num_images must be 1 to 32 (pictures)."),
        ({"lora_scale": "1"}, "lora_scale must be -2 to 3."),
        ({"width": 100}, "width must be 32 to 2048, multiple of 8 (px)."),
        ({"width": 4096}, "width must be 32 to 2048, multiple of 8 (px)."),
        ({"repeat": "x"}, "repeat must be none, straight, half-drop, brick, band."),
        ({"dpi": float("nan")}, "dpi must be 30 to 2400 (px/inch)."),
        ({"prompts": "a doily"}, "prompts must be a list of texts, each one line."),
        ({"prompts": ["a\nb"]}, "prompts must be a list of texts, each one line."),
        ({"prompts": ["a\ud800"]}, "prompts must be a list of texts, each one line."),
        ({"prompts": ["x"] * 33}, "prompts must be a list of at most 32 texts."),
        ({"prompts": ["x" * 1001]}, "prompts must be texts of at most 1000 characters."),
        ({"negative_prompt": "x" * 1001}, "negative_prompt must be a text of at most 1000 characters."),
        ([], "Send the settings as one JSON object"),
        ({"num_imges": 3}, "No setting called 'num_imges'; did you mean num_images?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence_with_what_would_do(values, sentence):
    """P25: and what was sent is not repeated, but for the name of an unknown setting."""
    assert fault(values).startswith(sentence)


def test_a_request_becomes_the_settings_of_a_sheet_of_its_own_and_nothing_else_of_the_server_changes():
    """P25, L15: the same settings that lace-lora generate would draw with."""
    own = config.load(preset="none", prompts_file="mine.csv", vary="sheet/3", sheet_name="mine", image_format="jpg")
    asked = MODEL(prompts=["a rose"], num_images=3, width=64).model_dump()
    found = commissions.settings_of(asked | {"lora_output_dir": "/elsewhere"}, own, "served-1")
    assert (found.prompts, found.num_images, found.width) == (("a rose",), 3, 64)
    assert (found.prompts_file, found.vary, found.sheet_name, found.image_format) == (None, None, "served-1", "png")
    changed = {name for name in Config.model_fields if getattr(found, name) != getattr(own, name)}
    assert changed <= {*commissions.NAMES, "prompts_file", "vary", "sheet_name", "image_format"}


def test_a_prompt_that_cannot_be_drawn_is_refused_before_it_waits():
    """P25."""
    asked = MODEL(prompts=["a {rose"]).model_dump()
    with pytest.raises(SettingsError, match="never closed"):
        commissions.check_prompts(commissions.settings_of(asked, SETTINGS, "served-1"), "<lace>")
    commissions.check_prompts(commissions.settings_of(MODEL(prompts=[]).model_dump(), SETTINGS, "served-1"), "<lace>")


def test_a_prompt_with_more_combinations_than_atoms_costs_nothing():
    """P25: alternatives are counted, never written out."""
    asked = MODEL(prompts=["{a|b}" * 190], num_images=32).model_dump()
    commissions.check_prompts(commissions.settings_of(asked, SETTINGS, "served-1"), "<lace>")
