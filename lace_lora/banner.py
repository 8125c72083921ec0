"""A notice that cannot be overlooked: framed lines for a terminal, a coloured box for a notebook."""

import html
import textwrap

WIDTH = 100


def framed(text: str, width: int = WIDTH) -> str:
    """The text in a frame of lines, wrapped to the width."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, width - 4) or [""]]
    edge = "═" * (width - 2)
    return "\n".join([f"╔{edge}╗", *(f"║ {line:<{width - 4}} ║" for line in lines), f"╚{edge}╝"])


def boxed(text: str) -> str:
    """The text as HTML: its first line large, in a box whose colours are told apart in light and dark themes."""
    first, *rest = text.splitlines()
    lines = "".join(f"<p style='margin:0.4em 0 0'>{html.escape(line)}</p>" for line in rest)
    style = "background:#fff3c4;color:#3d2c00;border:3px solid #b7791f;border-radius:6px;padding:0.9em 1.1em"
    head = f"<p style='margin:0;font-size:1.25em;font-weight:bold'>{html.escape(first)}</p>"
    return f"<div role='alert' style='{style};max-width:60em'>{head}{lines}</div>"
