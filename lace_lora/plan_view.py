"""The summary of a plan above the fields of a form, as HTML that is read out when it changes."""

import html

from lace_lora.entries import Entries
from lace_lora.form_parts import notice

_LEFT = "style='text-align:left;padding:1px 12px 1px 0;vertical-align:top'"


def as_html(entries: Entries) -> str:
    """The plan with the warnings that have no field here, and where the others stand; nothing where nothing is said."""
    lines = "".join(_lines(entries))
    cells = "".join(
        f"<tr><th scope='row' {_LEFT}>{html.escape(name)}</th><td {_LEFT}>{html.escape(value)}</td></tr>"
        for name, value in entries.shown.rows
    )
    table = f"<table style='line-height:1.4;margin:2px 0 6px;border:0'>{cells}</table>" if cells else ""
    if not lines and not table:
        return ""
    return f"<div role='status' aria-label='The plan' style='line-height:1.4'>{lines}{table}</div>"


def _lines(entries: Entries) -> list[str]:
    """What is in the plan's way, and what there is to read."""
    wrong, cautions, in_the_way = entries.wrong, entries.cautions(), entries.in_the_way
    lines = []
    if wrong and entries.shown.rows:
        lines.append(notice(f"The plan below is of the last good values: correct {', '.join(wrong)}.", True))
    elif in_the_way and not wrong:
        what = "The plan below is of the last values that could be planned" if entries.shown.rows else _NO_PLAN
        lines.append(notice(f"{what}; see {in_the_way.setting}."))
    lines += [notice(one.sentence) for one in cautions if one.setting not in entries.names]
    named = [one.setting for one in cautions if one.setting in entries.names]
    beside = list(dict.fromkeys([*named, *entries.clashing]))
    if beside and entries.shown.rows and not in_the_way:
        lines.append(notice(f"read what stands below {', '.join(beside)}."))
    return lines


_NO_PLAN = "The fields show the last values that could be used"
