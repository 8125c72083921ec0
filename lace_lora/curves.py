"""The course of a training as a chart (one SVG, no script) and as a sentence: still learning, best where, copying?"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Point = tuple[float, float]

POINTS_AT_MOST = 600
SMOOTHING = 0.95  # share of the past in each point of the smoothed line
# Looks with fixed noise still move by chance, by about this part of themselves; less is no change.
JITTER = 0.004
LOOKS_FOR_A_VERDICT = 3
PICTURES = "pictures"
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 40
_COLOURS = {"training": "#8a8378", "smoothed": "#b3541e", "held out": "#1f5f8b", "learnt": "#5b8c3a"}
_STYLE = 'font-family="system-ui, sans-serif" font-size="12" fill="#3a3632"'


def smoothed(values: Sequence[float], keep: float = SMOOTHING) -> list[float]:
    """The exponential mean of all values so far, without the pull to zero at the beginning."""
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def verdict(looks: Rows) -> str:
    """What the looks at held-out pictures say, in a sentence; nothing firm is said of fewer than three."""
    later = [row for row in looks if row["step"] > 0 and _is_number(row["val_loss"])]
    if len(later) < LOOKS_FOR_A_VERDICT:
        return "too few looks at held-out pictures to say whether it copies; look at the samples."
    first = next((row for row in looks if row["step"] == 0 and _is_number(row["val_loss"])), later[0])
    best = min(later, key=lambda row: row["val_loss"])
    last = later[-1]
    rise = last["val_loss"] / best["val_loss"] - 1
    fall = 1 - best["val_loss"] / first["val_loss"]
    noise = max(JITTER, _jitter([row["val_loss"] for row in later]))
    probes = last["train_probe_loss"], best["train_probe_loss"]
    still_fits = all(map(_is_number, probes)) and probes[0] < probes[1] * (1 + JITTER)
    if rise > 2 * noise and still_fits:
        return (
            f"copying since step {best['step']}: the held-out loss rose by {100 * rise:.1f} % since, that of learnt "
            f"pictures did not. Take the checkpoint of step {best['step']}, or train fewer steps."
        )
    if fall < noise:
        return "no change on held-out pictures yet: more steps, a larger learning_rate, or more pictures."
    if best is last or rise <= noise:
        return f"still learning: the held-out loss fell by {100 * fall:.1f} %, and was lowest at step {best['step']}."
    return f"the held-out loss fell by {100 * fall:.1f} % until step {best['step']} and has not fallen since."


def chart(rows: Rows, width_px: int = 720, height_px: int = 320, of: str = PICTURES) -> str:
    """Training loss (single and smoothed) and both lines of the looks, as one SVG that needs nothing else.

    rows  of log.jsonl, of both kinds, in order; values that are no numbers are left out
    of    what is learnt and held out; only of pictures are the learnt ones looked at, too
    """
    trained = [(row["step"], row["loss"]) for row in rows if _is_number(row.get("loss"))]
    looks = [row for row in rows if _is_number(row.get("val_loss"))]
    frame = _Frame.around([*_inner(trained), *_look_points(looks)], width_px, height_px)
    body = [f'<rect width="{width_px}" height="{height_px}" rx="6" fill="#fbfaf7"/>', *_axes(frame)]
    if not trained and not looks:
        body.append(f'<text x="{width_px / 2}" y="{height_px / 2}" text-anchor="middle" {_STYLE}>no step yet</text>')
        return _svg(body, width_px, height_px)
    means = smoothed([loss for _, loss in trained])
    body.append(_line(frame, _thinned(trained), _COLOURS["training"], "0.8", opacity="0.35"))
    body.append(_line(frame, _thinned([(step, mean) for (step, _), mean in zip(trained, means, strict=True)]),
                      _COLOURS["smoothed"], "2"))  # fmt: skip
    for name, key in (("learnt", "train_probe_loss"), ("held out", "val_loss")):
        body += _dotted(frame, [(row["step"], row[key]) for row in looks if _is_number(row.get(key))], _COLOURS[name])
    return _svg([*body, *_best(frame, looks), *_legend(bool(looks), bool(trained), of)], width_px, height_px)


class _Frame:
    """Where a step and a loss lie on the page."""

    def __init__(self, steps: tuple[float, float], losses: tuple[float, float], width_px: int, height_px: int) -> None:
        self.steps, self.losses, self.width, self.height = steps, losses, width_px, height_px

    @classmethod
    def around(cls, points: Sequence[Point], width_px: int, height_px: int) -> "_Frame":
        steps = [step for step, _ in points] or [0.0, 1.0]
        losses = [loss for _, loss in points] or [0.0, 1.0]
        low, high = min(losses), max(losses)
        spare = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
        return cls((0.0, max(1.0, *steps)), (max(0.0, low - spare), high + spare), width_px, height_px)

    def place(self, step: float, loss: float) -> Point:
        low, high = self.losses
        inside = min(max(loss, low), high)  # a single wild loss stands at the border
        x = _LEFT + (step - self.steps[0]) / (self.steps[1] - self.steps[0]) * (self.width - _LEFT - _RIGHT)
        return x, self.height - _BOTTOM - (inside - low) / (high - low) * (self.height - _TOP - _BOTTOM)


def _inner(trained: Sequence[Point]) -> list[Point]:
    """Without the widest two percent, which would press all others flat."""
    if len(trained) < 50:
        return list(trained)
    kept = sorted(loss for _, loss in trained)[: int(0.98 * len(trained))]
    return [*((step, loss) for step, loss in trained if loss <= kept[-1]), (trained[-1][0], kept[len(kept) // 2])]


def _look_points(looks: Rows) -> list[Point]:
    keys = ("val_loss", "train_probe_loss")
    return [(row["step"], row[key]) for row in looks for key in keys if _is_number(row.get(key))]


def _jitter(values: Sequence[float]) -> float:
    """How much successive looks jump against their neighbours' mean, as a part of themselves."""
    bends = [abs(b - (a + c) / 2) / b for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return sorted(bends)[len(bends) // 2] if bends else 0.0


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two bounds: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axes(frame: _Frame) -> list[str]:
    low, high = frame.losses
    drawn = []
    for loss in ticks(low, high, 5):
        _, y = frame.place(0, loss)
        drawn.append(f'<line x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4dfd6"/>')
        drawn.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" {_STYLE}>{loss:.4g}</text>')
    for step in ticks(*frame.steps, 6):
        if step == int(step):
            x, _ = frame.place(step, low)
            drawn.append(
                f'<text x="{x:.1f}" y="{frame.height - _BOTTOM + 18}" text-anchor="middle" {_STYLE}>{step:g}</text>'
            )
    middle = (_LEFT + frame.width - _RIGHT) / 2
    drawn.append(f'<text x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle" {_STYLE}>step</text>')
    return drawn


def _line(frame: _Frame, points: Sequence[Point], colour: str, width: str, opacity: str = "1") -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.place(*point) for point in points))
    return (
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" '
        'stroke-linejoin="round"/>'
    )


def _dotted(frame: _Frame, points: Sequence[Point], colour: str) -> list[str]:
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (frame.place(*one) for one in points)
    ]
    return [_line(frame, points, colour, "1.6"), *dots] if points else []


def _best(frame: _Frame, looks: Rows) -> list[str]:
    """A ring and a word at the lowest look after training began."""
    later = [row for row in looks if row["step"] > 0]
    if not later:
        return []
    best = min(later, key=lambda row: row["val_loss"])
    x, y = frame.place(best["step"], best["val_loss"])
    anchor = "end" if x > frame.width * 0.7 else "start"
    aside = -10 if anchor == "end" else 10
    return [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{_COLOURS["held out"]}" stroke-width="1.6"/>',
        f'<text x="{x + aside:.1f}" y="{y + 18:.1f}" text-anchor="{anchor}" {_STYLE}>best: step {best["step"]}</text>',
    ]


def _legend(has_looks: bool, is_trained: bool, of: str) -> list[str]:
    names = [("smoothed", "training (smoothed)")] if is_trained else []
    names += [("held out", f"held-out {of}")] if has_looks else []
    names += [("learnt", f"learnt {of}, same noise")] if has_looks and of == PICTURES else []
    drawn, x = [], _LEFT
    for name, words in names:
        drawn.append(f'<line x1="{x}" x2="{x + 18}" y1="18" y2="18" stroke="{_COLOURS[name]}" stroke-width="3"/>')
        drawn.append(f'<text x="{x + 24}" y="22" {_STYLE}>{escape(words)}</text>')
        x += 44 + 7 * len(words)
    return drawn


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS_AT_MOST of them, the last one always among them."""
    every = max(1, math.ceil(len(points) / POINTS_AT_MOST))
    kept = list(points[::every])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _svg(body: Sequence[str], width_px: int, height_px: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px} {height_px}" role="img" '
    return f'{head}style="max-width:{width_px}px;width:100%" aria-label="loss over steps">{"".join(body)}</svg>'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
