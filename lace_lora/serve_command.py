"""The commands `serve` and `space`: which adapter, where, and how much may be asked for; the doors load late."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec

import typer

from lace_lora.commissions import Limits
from lace_lora.config import Config
from lace_lora.errors import SettingsError

NAMED = typer.Argument(metavar="RUN", help="a run in lora_output_dir, or a path to a run or an adapter; else run_name")
SERVE = {
    "run": NAMED,
    "host": typer.Option(
        metavar="ADDRESS",
        help="where to listen (default 127.0.0.1, which only this computer reaches; others need LACE_SERVE_KEY)",
    ),
    "port": typer.Option(metavar="NUMBER", help="port to listen at (default 8000, for space 7860; 0: a free one)"),
    "queue": typer.Option(metavar="NUMBER", help="requests that may wait (default 16, for space 8)"),
    "most_images": typer.Option(metavar="NUMBER", help="designs in one request (default 32, for space 8)"),
}
SPACE = {name: SERVE[name] for name in ("run", "port", "queue", "most_images")}
MOST = {"port": 65_535, "queue": 10_000, "most_images": 10_000}

Words = Sequence[str] | str | None
Say = Callable[[str], None]


def serve(config: Config, run: Words, host: Words, port: Words, queue: Words, most_images: Words) -> None:
    """Serve designs to programs over HTTP: a queue, progress and pictures, with the models loaded once."""
    require("serve", "fastapi", "uvicorn")
    from lace_lora import gate
    from lace_lora import serve as room

    address, limits = _one(host) or room.HOST, limits_of(queue, most_images)
    gate.Gate.of(address, gate.key_in_environment(), limits.body_bytes)  # before anything is loaded
    place = number_of("port", port, room.PORT, least=0)
    studio, drawing = opened(_one(run), config, limits)
    room.run(drawing, studio.facts, studio.config, limits, address, place, _say)


def space(config: Config, run: Words, port: Words, queue: Words, most_images: Words) -> None:
    """Show a page in the browser to draw with one LoRA; the same page runs in a Hugging Face Space."""
    require("space", "gradio", "fastapi", "uvicorn")
    from lace_lora import space as room

    limits, place = limits_of(queue, most_images, room.LIMITS), number_of("port", port, room.PORT, least=0)
    studio, drawing = opened(_one(run), config, limits)
    room.run(drawing, studio.facts, studio.config, limits, room.HOST, place, _say)


def require(extra: str, *modules: str) -> None:
    """Raises SettingsError, with what to type, where packages of an extra are not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"This needs {' and '.join(missing)}, which is not installed. Type: pip install 'lace-lora[{extra}]' "
            f"(in a checkout: pip install -e '.[{extra}]')"
        )


def limits_of(queue: Words, most_images: Words, limits: Limits = Limits()) -> Limits:  # noqa: B008  # frozen
    """The limits of a door, with those that a person sets."""
    return replace(
        limits,
        waiting=number_of("queue", queue, limits.waiting),
        images=number_of("most_images", most_images, limits.images),
    )


def number_of(name: str, words: Words, default: int, least: int = 1) -> int:
    """The number of an option, else its default. Raises SettingsError outside of `least` and MOST."""
    text = _one(words)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:9]) <= MOST[name] or len(text) > 9:
        option = name.replace("_", "-")
        raise SettingsError(f"--{option} is {text!r} but must be a whole number, {least} to {MOST[name]}.")
    return int(text)


def opened(named: str | None, config: Config, limits: Limits):  # type: ignore[no-untyped-def]
    """(studio, service) for an adapter that a person names."""
    from lace_lora.service import Service
    from lace_lora.studio import Studio

    studio = Studio.open(named, config, limits, _say)
    return studio, Service(studio.run, studio.draw, limits.waiting, _say, studio.check)


def _one(words: Words) -> str | None:
    """What was given once, or nothing. Raises SettingsError where it was given twice."""
    found = [words] if isinstance(words, str) else list(words or ())
    if len(found) > 1:
        raise SettingsError(f"Give one of these, not {len(found)}: {', '.join(found)}.")
    return found[0] if found else None


def _say(line: str) -> None:
    print(line, flush=True)
