"""What a notebook's cells need around the verbs: errors as sentences, banners, tables, pictures, and who is there."""

import gc
import html
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from traceback import clear_frames
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ipywidgets
from IPython import get_ipython
from IPython.display import display

from lace_lora import colab, machine
from lace_lora.banner import boxed, framed
from lace_lora.errors import LaceError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lace_lora.caption_lint import Finding
    from lace_lora.check_report import CheckReport
    from lace_lora.config import Config
    from lace_lora.inference import Generation
    from lace_lora.run_folder import RunFolder
    from lace_lora.scores import Evaluation

PICTURE_WIDTH_PX = 900  # of a picture shown in a cell; the file on the disk keeps its size
JPEG_QUALITY = 80
PROBLEMS_SHOWN = 5  # a row
# What stands when the mouse rests on a widget: ipywidgets 8 has another name for it than 7, which Colab has.
HOVER = "tooltip" if int(ipywidgets.__version__.split(".")[0]) >= 8 else "description_tooltip"
TICK, CROSS = "✓", "✗"
STOPPED = "Stopped at once. What was saved before is kept: run this cell again to go on from there."
NOT_YET = (
    "‘{name}’ is not there yet: a cell further up makes it, and was not run in this session. Run the cells above first "
    "(in Colab: Runtime → Run before; in JupyterLab: Run → Run All Above Selected Cell)."
)


def has_front_end() -> bool:
    """Whether somebody's front-end draws widgets; papermill and nbval run cells that may not ask for input."""
    return colab.somebody_is_here()


def mount_drive(drive_mount_path: str) -> str:
    """Mount Google Drive in Colab and return a sentence about it; Colab's consent is asked for only of a person.

    Raises MachineError with what to do when Colab refuses.
    """
    if not machine.in_colab():
        return "This is not Colab, so there is no Drive to mount."
    if not has_front_end() and not machine.drive_is_mounted(drive_mount_path):
        return f"Nobody is here to allow access to Drive, so it is not mounted at {drive_mount_path}."
    return colab.mount_drive(drive_mount_path)[1]


def settings(**given: Any) -> "Config":
    """The settings of a notebook: a config.yaml where one is found, and over it what its parameters cell gives.

    In Colab, Drive is mounted first when a folder that the notebook names as a parameter lies in it.

    Raises SettingsError for a value that will not do, MachineError with what to do when Colab refuses.
    """
    from lace_lora import config, presets

    asked = config.load(*config.found(), **given)
    if machine.in_colab():
        settled = presets.settle(asked, machine.Machine.here(asked.drive_mount_path)).config
        folders = [Path(getattr(settled, name)) for name in ("images_dir", "lora_output_dir") if name in given]
        if any(folder.is_relative_to(asked.drive_mount_path) for folder in folders):
            print(mount_drive(asked.drive_mount_path))
    return config.load(*config.found(asked.drive_mount_path), **given)


def run_folder(asked: "Config") -> "RunFolder":
    """The folder of the run that these settings lead to on this machine."""
    from lace_lora import presets
    from lace_lora.run_folder import RunFolder

    return RunFolder.of(presets.settle(asked, machine.Machine.here()).config)


class Page:
    """The notebook as a page that is written on: a text of several lines that stands there is not said again."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """Print a text; not a second time the plan, which verbs repeat and which was read before they were begun."""
        if text not in self._said:
            print(text, flush=True)
        if "\n" in text:
            self._said.add(text)

    def banner(self, text: str) -> None:
        """Show a notice in a coloured box (framed lines where no HTML is drawn); an empty one shows nothing."""
        self._said.add(text)
        if text:
            display({"text/html": boxed(text), "text/plain": framed(text)}, raw=True)

    def checks(self, rows: Sequence[tuple[str, str, bool, str]]) -> None:
        """Show rows of (name, found, is good, advice): a tick, or a cross with what to do."""
        names, finds = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
        lines = [
            f"{TICK if good else CROSS} {name:<{names}}  {found:<{finds}}  {advice}".rstrip()
            for name, found, good, advice in rows
        ]
        cells = "".join(
            f"<tr><td style='color:{'#2f855a' if good else '#c53030'};font-size:1.2em'>{TICK if good else CROSS}</td>"
            + "".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in (name, found, advice))
            + "</tr>"
            for name, found, good, advice in rows
        )
        display({"text/html": f"<table>{cells}</table>", "text/plain": "\n".join(lines)}, raw=True)

    def sheet(self, designs: "Sequence[Generation]") -> None:
        """Show the designs that `inference.run` returned on one page, and what the refiner did to their threads."""
        from lace_lora.run_folder import SheetFolder

        if not designs:
            print("No picture is finished yet. Run the cell above again.")
            return
        folder = SheetFolder(designs[0].path.parent)
        self.picture(folder.contact_sheet, f"{len(designs)} designs in {folder.root}")
        refined = [(one.base, one.refined) for one in designs if one.refined]
        if refined:
            before, after = (_crispness(paths) for paths in zip(*refined, strict=True))
            print(f"crispness: {before:.3f} unrefined, {after:.3f} refined")

    def problems(self, report: "CheckReport") -> None:
        """Show the photographs of a check that are most worth a look, where there are any."""
        if sheet := report.sheet(PROBLEMS_SHOWN):
            self.picture(sheet, "worth a look")

    def findings(self, found: "Sequence[Finding]") -> None:
        """Print what is wrong with captions, a line each."""
        from lace_lora import caption_lint

        print("\n".join(caption_lint.describe(found)) or "nothing is wrong with the captions")

    def verdict(self, found: "Evaluation") -> None:
        """Show what to think of an evaluation, a sentence each."""
        items = "".join(f"<li>{html.escape(line)}</li>" for line in found.verdict)
        display({"text/html": f"<ul>{items}</ul>", "text/plain": "\n".join(found.verdict)}, raw=True)

    def scores(self, found: "Evaluation") -> None:
        """Show every score of an evaluation with its interval and what it means."""
        rows = [
            (one.name, "not measured" if one.value is None else str(one), one.refusal or one.means)
            for one in found.scores
        ]
        self.table(("", "value (95 of 100)", "what it means"), rows)

    def choice(self, found: "Evaluation") -> None:
        """Show which checkpoint is advised, and what is known of each."""
        print(found.choice.get("advice") or "nothing can be advised yet")
        rows = [
            (
                f"{'→ ' if row['is_advised'] else ''}{row['step']}",
                "" if row["val_loss"] is None else f"{row['val_loss']:.4f}",
                f"{row['copies']} of {row['looked_at']}" if row["looked_at"] else "not looked at",
                "kept" if row["is_kept"] else "deleted",
            )
            for row in found.choice.get("rows", ())
        ]
        if rows:
            self.table(("step", "loss on held-out pictures", "copies", ""), rows)

    def nearest(self, run: "RunFolder", found: "Evaluation") -> None:
        """Show what is most like a photograph, beside it: the top of the first page, to keep the notebook small."""
        from PIL import Image

        check = found.copies
        if check.refusal or not run.nearest(1).is_file():
            print(check.refusal or "No picture was compared.")
            return
        with Image.open(run.nearest(1)) as page:
            top = page.convert("RGB").crop((0, 0, page.width, min(page.height, page.width // 2)))
        self.picture(top, f"{len(check.pairs)} pictures, {len(check.copies)} of them copies; all in {run.nearest(1)}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows of texts under their names."""
        cells = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in rows
        )
        names = "".join(f"<th scope='col' style='text-align:left'>{html.escape(name)}</th>" for name in head)
        widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        page = f"<table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table>"
        display({"text/html": page, "text/plain": "\n".join(lines)}, raw=True)

    def picture(self, picture: "Path | Image", about: str) -> None:
        """Show a picture or a file at a size that keeps the notebook small; what it is and its own size are text."""
        from PIL import Image

        if isinstance(picture, Path):
            with Image.open(picture) as opened:
                shown = opened.convert("RGB")
        else:
            shown = picture.convert("RGB")
        text = f"{about}: {shown.width} × {shown.height} px"
        shown.thumbnail((PICTURE_WIDTH_PX, 3 * PICTURE_WIDTH_PX))
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=JPEG_QUALITY)
        display({"image/jpeg": buffer.getvalue(), "text/plain": text}, raw=True)


def open_page(debug: bool = False) -> Page:
    """Begin a notebook. From here a LaceError shows as its sentence, without the traceback.

    The cell still fails, so papermill stops too. `open_page(debug=True)` gives the tracebacks back.
    """
    shell = get_ipython()
    if shell is not None:
        kinds = () if debug else (LaceError, KeyboardInterrupt, NameError)
        shell.set_custom_exc(kinds, None if debug else _show_sentence)
    return Page()


def _crispness(paths: Sequence[Path]) -> float:
    """The mean strength of the edges in pictures."""
    from PIL import Image

    from lace_lora import style_statistics

    strengths = []
    for path in paths:
        with Image.open(path) as picture:
            strengths.append(style_statistics.edge_energy(picture))
    return mean(strengths)


def _show_sentence(
    shell: Any, kind: type[BaseException], error: Any, trace: TracebackType | None, tb_offset: int | None = None
) -> list[str]:
    """IPython asks an error how to draw its traceback; this one answers with its sentence alone."""
    sentence = _sentence(shell, error, trace)
    if sentence is not None:
        error._render_traceback_ = lambda: [sentence]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    _let_go(error)
    return [sentence or str(error)]


def _sentence(shell: Any, error: BaseException, trace: TracebackType | None) -> str | None:
    """What is said of an error; None for a wrong name that is no cell's, whose traceback is needed."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    if not isinstance(error, NameError):
        return str(error)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    is_a_cells = trace is not None and trace.tb_frame.f_globals is shell.user_ns
    return NOT_YET.format(name=error.name) if is_a_cells else None


def _let_go(error: BaseException) -> None:
    """Empty the frames of an error and of what caused it.

    IPython keeps the last error; its frames would keep the models in memory, and a cell that ran out of memory would
    run out of it again.
    """
    cause: BaseException | None = error
    while cause is not None:
        clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()
