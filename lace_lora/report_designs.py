"""The parts of a run's page that show designs: a contact sheet of each sheet, and some of them laid in repeat."""

from functools import partial

from lace_lora import page, stars
from lace_lora import report_parts as parts
from lace_lora.errors import LaceError
from lace_lora.report_parts import Pictures, measured, number, text
from lace_lora.run_folder import RunFolder, SheetFolder

SHEETS, REPEATS = 4, 4  # that are shown; the others are named
MOST_PROMPTS, MOST_SHEETS = 60, 60


def sheets(run: RunFolder, pictures: Pictures) -> str:
    """The sheets of designs, those drawn last first, with their favourites and prompts."""
    found = stars.sheets_in(run.sheets)
    # The newest, then those with favourites, then the next ones; each in its place.
    wanted = sorted(range(len(found)), key=lambda place: (place > 0, not _starred(found[place]), place))[:SHEETS]
    body = ""
    for place in sorted(wanted):
        most_bytes = 450_000 if place == 0 else 220_000
        show = partial(_sheet, found[place], pictures, most_bytes)
        body += parts.part(f"The sheet {parts.plain(found[place].root.name, 80)}", show, run.root)
    if others := [sheet for place, sheet in enumerate(found) if place not in wanted]:
        listed = ", ".join(f"<code>images/{text(sheet.root.name, 80)}</code>" for sheet in others[:MOST_SHEETS])
        more = f" and {len(others) - MOST_SHEETS} more" if len(others) > MOST_SHEETS else ""
        body += f"<p class='note'>Other sheets: {listed}{more}.</p>"
    return body


def repeats(run: RunFolder, pictures: Pictures) -> str:
    """A few designs laid in repeat: favourites first, then those whose seam shows least."""
    found = []
    for place, sheet in enumerate(stars.sheets_in(run.sheets)):
        rows = stars.rows(sheet, ("repeat", "seam", "prompt"))
        starred = _starred(sheet)
        for index, row in rows.items():
            laid = page.beside(stars.picture_of(sheet, row), "in repeat")
            if row.get("repeat") not in (None, "none") and laid.is_file():
                seam = measured(row.get("seam"))
                order = (index not in starred, place, 99.0 if seam is None else seam, index)
                found.append((order, sheet, index, row, laid))
    found.sort(key=lambda one: one[0])
    shown = ""
    for _, sheet, index, row, laid in found[:REPEATS]:
        star = f"{stars.STAR} " if index in _starred(sheet) else ""
        caption = f"{star}{stars.address(sheet, index)}, {parts.plain(row.get('repeat'), 40)}"
        seam = measured(row.get("seam"))
        said = f"seam score {number(row['seam'])}" if seam is not None else "its seam was not measured"
        shown += f"<div>{pictures.figure(laid, caption, 900, 110_000, is_named=False)}<p class='soft'>{said}</p></div>"
    if not shown:
        return ""
    files = [f"images/{sheet.root.name}/images.jsonl" for sheet in dict.fromkeys(one[1] for one in found[:REPEATS])]
    means = (
        "A seam score of 1 means that the border is no sharper than the lines inside the design; above 1.25 it shows."
    )
    left = len(found) - min(len(found), REPEATS)
    rest = parts.note(f"{left} more lie beside their designs, as …_repeat.png.") if left else ""
    return f"<div class='side'>{shown}</div>{parts.paragraph(means, 'soft')}{rest}{parts.source(*files)}"


def _sheet(sheet: SheetFolder, pictures: Pictures, most_bytes: int) -> str:
    rows = stars.rows(sheet, ("prompt",))
    shown = pictures.figure(sheet.contact_sheet, f"the designs of {sheet.root.name}", most_bytes=most_bytes)
    if not rows and not shown:
        return ""
    starred = [index for index in rows if index in _starred(sheet)]
    loved = f", {len(starred)} starred {stars.STAR}: {stars.spans(starred)}" if starred else ""
    prompts = list(dict.fromkeys(parts.plain(row.get("prompt")) for row in rows.values()))
    listed = "".join(f"<li>{text(prompt)}</li>" for prompt in prompts[:MOST_PROMPTS])
    left = parts.note(f"{len(prompts) - MOST_PROMPTS} more prompts.") if len(prompts) > MOST_PROMPTS else ""
    name = sheet.root.name
    files = [f"images/{name}/images.jsonl", *([f"images/{name}/starred.json"] if starred else [])]
    return (
        f"<h3>{text(name, 80)}</h3><p>{len(rows)} design{'' if len(rows) == 1 else 's'}{loved}</p>{shown}"
        + parts.fold(f"{len(prompts)} prompt{'' if len(prompts) == 1 else 's'}", f"<ol>{listed}</ol>{left}")
        + parts.source(*files)
    )


def _starred(sheet: SheetFolder) -> frozenset[int]:
    try:
        return stars.read(sheet, lambda _: None)
    except LaceError:
        return frozenset()
