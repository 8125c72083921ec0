"""Settings that are right by themselves and cannot work together, each with the sentence that says so.

Verbs refuse them before they begin, and a form says them beside the field while they can still be corrected.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lace_lora.config import Config
from lace_lora.errors import SettingsError


@dataclass(frozen=True)
class Clash:
    """What cannot work together: the names of the settings, the one to correct first, and what is to be done."""

    settings: tuple[str, ...]
    sentence: str


def found(config: Config) -> list[Clash]:
    """All clashes of these settings."""
    return [*words(config), *captioner(config.captioner, config.caption_url, config.caption_prompt), *designs(config)]


def refuse(clashes: Iterator[Clash]) -> None:
    """Raises SettingsError with the first of these clashes, where there is one."""
    for clash in clashes:
        raise SettingsError(clash.sentence)


def words(config: Config) -> Iterator[Clash]:
    """An instance prompt that lacks the concept token: every picture without a caption of its own would lack it too."""
    if config.concept_token.casefold() not in config.instance_prompt.casefold():
        yield Clash(
            ("instance_prompt", "concept_token"),
            f"instance_prompt {config.instance_prompt!r} does not hold the concept token {config.concept_token}. "
            f"Write for example: a photo of {config.concept_token}",
        )


def captioner(name: str, url: str | None, prompt: str | None) -> Iterator[Clash]:
    """What the captioner http_plain lacks, or cannot send."""
    if name == "http_plain" and not url:
        sentence = "captioner http_plain needs caption_url, the address that takes a picture."
        yield Clash(("caption_url", "captioner"), sentence)
    elif name == "http_plain" and prompt:
        sentence = "captioner http_plain sends no question: leave caption_prompt empty."
        yield Clash(("caption_prompt", "captioner"), sentence)


def designs(config: Config) -> Iterator[Clash]:
    """Two wishes of which each says by itself what is to be drawn."""
    if config.favourites_of and config.vary:
        sentence = f"favourites_of {config.favourites_of} and vary {config.vary} are both set. Choose one of them."
        yield Clash(("favourites_of", "vary"), sentence)
