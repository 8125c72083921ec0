"""A page in the browser to draw with one LoRA, for this computer or a Hugging Face Space. Decides nothing.

The page asks the same service as the door for programs; what may be asked for is in commissions. It loads nothing from
other hosts and tells nobody that it is used.
"""

import html
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

# Read when Gradio is imported: without it each start and each visit is told to a server of theirs.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio
from fastapi import FastAPI
from pydantic import ValidationError

from lace_lora import address, commissions, gate, serve
from lace_lora import config as declared
from lace_lora.commissions import Limits
from lace_lora.config import Config
from lace_lora.declarations import choices_of
from lace_lora.errors import LaceError
from lace_lora.families import known as known_models
from lace_lora.families.layouts import FAMILIES
from lace_lora.file_names import without_folders
from lace_lora.gate import Gate
from lace_lora.job_records import CANCELLED, FAILED, Job, Picture
from lace_lora.service import Service

SDK_VERSION = "6.31.0"  # of Gradio, with which the page was tested; a Space installs it by itself
HOST, PORT, SPACES_PORT = "127.0.0.1", 7860, 7860
# A page is for trying out: whoever wants sheets of hundreds has the command line.
LIMITS = Limits(waiting=8, images=8, prompts=1, side_px=1536, steps=60, body_bytes=256 * 1024)
LOOK_SECONDS = 0.3
KEPT_SECONDS = 24 * 3600  # for which Gradio keeps the pictures that it showed
# Width to height, of the same area as the square that was learnt.
SHAPES = {"square": (1.0, 1.0), "upright 3 : 4": (0.866, 1.155), "wide 4 : 3": (1.155, 0.866)}
REPEATS = {
    "none": "a single picture", "straight": "repeat, straight", "half-drop": "repeat, half-drop",
    "brick": "repeat, brick", "band": "a band, for an edging",
}  # fmt: skip
CSS = """.gradio-container {max-width: 1100px !important; width: 100%; margin: 0 auto !important}
#said {min-height: 3.4em} #said progress {width: 100%; height: .6em; accent-color: #4f46e5}
#designs .grid-wrap {max-height: none}"""
# Gradio's grey on white has 2.5 : 1, and 4.5 : 1 is what can be read.
READABLE = {
    "block_info_text_color": "*neutral_600", "block_label_text_color": "*neutral_800",
    "block_title_text_color": "*neutral_800", "block_info_text_color_dark": "*neutral_300",
    "block_label_text_color_dark": "*neutral_100", "block_title_text_color_dark": "*neutral_100",
    "block_title_background_fill_dark": "*neutral_800", "block_label_background_fill_dark": "*neutral_800",
}  # fmt: skip

Say = Callable[[str], None]
Facts = Callable[[], dict[str, Any]]
Shown = tuple[str, Any, Any, str]  # what is said, the gallery, the download, the request


def page(drawing: Service, facts: Facts, config: Config, limits: Limits, folder: Path) -> gradio.Blocks:
    """The page: a prompt and a few settings, the designs as they are finished, all of them in one zip.

    drawing  the requests
    facts    the adapter's facts
    config   settled: what the page does not ask for
    folder   where copies of pictures lie from which Gradio takes its own
    """
    known = facts()
    side = int(known["resolution"]) or known_models.side_px(config.pretrained_model)
    model = commissions.commission_model(config, limits)

    def draw(prompt: str, number: float, shape: str, seed: float, scale: float, repeat: str) -> Iterator[Shown]:
        yield from _drawn(
            drawing, model, config, known, folder,
            _asked(prompt, number, size_of(shape, side), seed, scale, repeat),
        )  # fmt: skip

    def stop(id: str) -> None:
        drawing.cancel(id)

    name, token = html.escape(str(known["name"])), html.escape(str(known["concept_token"] or "none"))
    with gradio.Blocks(title=f"Designs in the style of {known['name']}", delete_cache=(3600, KEPT_SECONDS)) as blocks:
        gradio.HTML(f"<h1>Designs in the style of {name}</h1><p>The word that calls the style is <b>{token}</b>; a "
                    f"prompt without it gets it. Base model: {html.escape(str(known['base_model']))}.</p>")  # fmt: skip
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                inputs = _inputs(config, limits, str(known["instance_prompt"]))
                with gradio.Row():
                    start = gradio.Button("Draw", variant="primary", elem_id="draw")
                    end = gradio.Button("Stop", elem_id="stop")
            with gradio.Column(scale=2, min_width=300):
                said = gradio.HTML("", elem_id="said")
                gallery = gradio.Gallery(label="Designs", columns=2, height="auto", elem_id="designs")
                download = gradio.DownloadButton("Download all as a zip", visible=False, elem_id="download")
        request = gradio.State("")
        start.click(
            draw, inputs, [said, gallery, download, request], concurrency_limit=limits.waiting + 1,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        end.click(stop, [request], None, queue=False, show_progress="hidden", api_visibility="private")
    blocks.queue(max_size=limits.waiting)
    return blocks


def run(drawing: Service, facts: Facts, config: Config, limits: Limits, host: str, port: int, say: Say = print) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Raises MachineError where the port is taken, RunError where another process serves this run.
    """
    with tempfile.TemporaryDirectory(prefix="lace_lora_") as folder:
        app: Any = application(drawing, facts, config, limits, Path(folder))
        if gate.is_loopback(host):
            app = gate.guarded(app, Gate.of(host, None, limits.body_bytes))
        serve.listening(app, drawing, host, port, "Open it in your browser.", say)


def application(drawing: Service, facts: Facts, config: Config, limits: Limits, folder: Path) -> FastAPI:
    """The page as it is served, see `page`; nothing of it comes from another host."""
    theme = gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(**READABLE)
    app: FastAPI = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page(drawing, facts, config, limits, folder),
        path="/", footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, show_error=False, max_file_size=limits.body_bytes, css=CSS, theme=theme,
    )  # fmt: skip
    return app


def public(run_folder: str | Path, *, say: Say = print) -> None:
    """The page of a Space, open to whoever visits it: what app.py of `space_files` calls.

    run_folder  a run's folder, or one with an adapter; sheets are written into it
    """
    from lace_lora.studio import Studio

    studio = Studio.open(str(run_folder), declared.load(*declared.found()), LIMITS, say)
    drawing = Service(studio.run, studio.draw, LIMITS.waiting, say, studio.check)
    run(drawing, studio.facts, studio.config, LIMITS, "0.0.0.0", SPACES_PORT, say)


def space_files(
    title: str, *, base_model: str, license: str = "openrail++", run_folder: str = "run", requirement: str = "",
) -> dict[str, str]:  # fmt: skip
    """app.py, requirements.txt and README.md of a Hugging Face Space, by name; the run's adapter is put beside them.

    title        of the Space
    base_model   the adapter's, as the Hub names it
    license      as the Hub spells licences; openrail++ is that of SDXL
    run_folder   where the adapter lies in the Space: a run's folder, or one with pytorch_lora_weights.safetensors
    requirement  what pip is to install; without one the address of this project, or a wheel beside app.py
    """
    front = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": SDK_VERSION,
        "python_version": "3.11",
        "app_file": "app.py",
        "license": license,
        "models": [base_model],
        "short_description": "New textile designs from one trained LoRA",
    }
    # A folder of this machine is no name on the Hub, which refuses the card for it.
    front = front if "/" in base_model else {name: value for name, value in front.items() if name != "models"}
    words = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    sources = address.sources()
    wanted = requirement or (sources[-1] if sources else "")
    needed = f"lace-lora[space] @ {wanted}" if wanted.startswith("git+") else wanted or f"./{_wheel()}"
    app = (
        '"""The page of this Space: new designs with one LoRA."""\n\nfrom pathlib import Path\n\n'
        f"from lace_lora import space\n\nspace.public(Path(__file__).parent / {run_folder!r})\n"
    )
    return {
        "app.py": app,
        "requirements.txt": f"{needed}\n",
        "README.md": f"---\n{words}---\n\n# {title}\n\n{_about(run_folder, base_model)}\n",
    }


def size_of(shape: str, side: int) -> tuple[int, int]:
    """Width and height of a shape in px, multiples of 8, of the area of a square of that side."""
    across, down = SHAPES.get(shape, (1.0, 1.0))
    return max(32, round(side * across / 8) * 8), max(32, round(side * down / 8) * 8)


# -- inside --

_ABOUT = """New designs in a style that was learnt from photographs, drawn with {base} and a LoRA in `{folder}`.

{needs}; the miniature demo model runs on the free CPU."""
_NEEDS = {
    "sdxl": "The page needs a GPU for SDXL (a T4 with 15 GB will do)",
    "sd15": "The page needs a GPU (a T4 with 15 GB will do)",
}
_NEEDS_A_LARGE_ONE = "The page needs a GPU for {kind}, larger than a T4: `lace-lora plan` says which will do"


def _about(folder: str, base_model: str) -> str:
    family = known_models.family_of(base_model)
    needs = _NEEDS.get(family) or _NEEDS_A_LARGE_ONE.format(kind=FAMILIES[family])
    return _ABOUT.format(folder=folder, base=base_model, needs=needs)


def _wheel() -> str:
    from lace_lora import __version__

    return f"lace_lora-{__version__}-py3-none-any.whl"


def _inputs(config: Config, limits: Limits, prompt: str) -> list[Any]:
    """What is asked for, in the order of `draw`; bounds and words are the declarations'."""
    fields = Config.model_fields
    about = {name: str(fields[name].description) for name in ("seed", "lora_scale")}
    repeats = [(REPEATS.get(one, one), one) for one in choices_of(fields["repeat"])]
    return [
        gradio.Textbox(prompt, label="What do you want to see?", lines=3, max_length=limits.prompt_characters,
                       elem_id="prompt"),
        gradio.Slider(1, limits.images, min(4, limits.images), step=1, label="Designs"),
        gradio.Dropdown(list(SHAPES), value="square", label="Shape", filterable=False),
        gradio.Number(config.seed, precision=0, minimum=0, maximum=2**31 - 1, label="Seed", info=about["seed"]),
        gradio.Slider(0, 2, config.lora_scale, step=0.05, label="Strength of the style", info=about["lora_scale"]),
        gradio.Dropdown(repeats, value=config.repeat, label="Seamless repeat", filterable=False,
                        info="how tiles join without a seam"),
    ]  # fmt: skip


def _asked(
    prompt: str, number: float, size: tuple[int, int], seed: float | None, scale: float, repeat: str
) -> dict[str, Any]:
    """What the page says, by the names of the settings. A prompt is one line; an empty one is none."""
    line = " ".join(str(prompt or "").split())
    return {
        "prompts": [line] if line else [], "num_images": number, "width": size[0], "height": size[1],
        "seed": seed if seed is not None else 0, "lora_scale": scale, "repeat": repeat,
    }  # fmt: skip


def _drawn(
    drawing: Service, model: type[commissions.Commission], config: Config, facts: dict[str, Any], folder: Path,
    asked: dict[str, Any],
) -> Iterator[Shown]:  # fmt: skip
    """Ask for designs, and show them as they are finished. Whoever closes the page has cancelled."""
    try:
        values = model(**asked).model_dump()
        settings = commissions.settings_of(values, config, "served")
        commissions.check_prompts(settings, str(facts["concept_token"]))
        job = drawing.submit(values, settings.num_images)
    except ValidationError as error:
        yield _problem(commissions.faults(error.errors(), model))
        return
    except LaceError as error:
        yield _problem(without_folders(str(error)))
        return
    place = folder / job.id
    shown = 0
    try:
        yield _said("Waiting …", None), [], gradio.DownloadButton(visible=False), job.id
        while not job.is_over:
            time.sleep(LOOK_SECONDS)
            job = drawing.job(job.id) or job
            told, there = _state(drawing, job), drawing.pictures(job.id)
            # Also where nothing is new: only between two answers does Gradio notice that nobody looks any more.
            gallery: Any = gradio.skip() if len(there) == shown else _copies(there, place)
            shown = len(there)
            yield told, gallery, gradio.skip(), job.id
    finally:
        drawing.cancel(job.id)
    there = drawing.pictures(job.id)
    gallery = _copies(there, place)
    packed = gradio.DownloadButton(value=str(_zipped(gallery, place)), visible=True) if gallery else _hidden()
    yield _ending(job, len(there)), gallery, packed, ""


def _state(drawing: Service, job: Job) -> str:
    """How far a request is, in words and a bar."""
    progress = drawing.progress(job)
    if drawing.is_cancelling(job.id):
        return _said("Stopping after what is in hand …", progress.share)
    if progress.ahead:
        return _said(f"{progress.ahead} before you …", None)
    left = f", about {_minutes(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
    return _said(f"Drawing: {progress.finished} of {job.total} finished{left}", progress.share)


def _ending(job: Job, finished: int) -> str:
    if job.state == FAILED:
        return _problem(job.error)[0]
    notes = " ".join(job.notes)
    how = "Stopped" if job.state == CANCELLED else "Finished"
    return _said(f"{how}: {finished} of {job.total} designs. {notes}".strip(), None if job.state == CANCELLED else 1.0)


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} minutes"


def _said(text: str, share: float | None) -> str:
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}"></progress>'
    return f'<p role="status">{html.escape(text)}</p>{bar}'


def _problem(sentence: str) -> Shown:
    return f'<p role="alert"><b>Not drawn.</b> {html.escape(sentence)}</p>', [], _hidden(), ""


def _hidden() -> Any:
    return gradio.DownloadButton(visible=False)


def _copies(there: dict[int, Picture], place: Path) -> list[tuple[str, str]]:
    """Copies of pictures, each with its caption; Gradio shows none that lie in the run's own folder."""
    place.mkdir(parents=True, exist_ok=True)
    found = []
    for picture in there.values():
        copy = place / f"design_{picture.number:02d}.png"
        try:
            if not copy.is_file():
                copy.write_bytes(picture.path.read_bytes())
        except OSError:  # not delivered yet, or moved this moment: the next look finds it
            continue
        found.append((str(copy), f"seed {picture.seed}"))
    return found


def _zipped(gallery: list[tuple[str, str]], place: Path) -> Path:
    packed = place / "designs.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path, _ in gallery:
            archive.write(path, Path(path).name)
    return packed
