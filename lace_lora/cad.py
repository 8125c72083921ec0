"""CAD documents as plain values: numbers rounded, operations in order, written as JSON, and measured as bodies."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

DECIMALS = 6
WITHIN = 0.01  # how far apart sizes and volumes may be and still count as the same, as a share


class Literal(float):
    """A number that knows how it was written in a document."""

    text: str

    @classmethod
    def of(cls, text: str) -> "Literal":
        """From the digits of a JSON document, or NaN and Infinity, which Python's reader takes too."""
        number = cls(text)
        number.text = text
        return number


def read(text: str) -> Any:
    """A JSON document whose numbers know how they were written. Raises ValueError for what is no JSON."""
    try:
        return json.loads(text, parse_float=Literal.of, parse_int=Literal.of, parse_constant=Literal.of)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def text_of(number: float) -> str:
    """How a number is written, or would be: of one that was read, its own digits."""
    return number.text if isinstance(number, Literal) else repr(number)


def number_text(number: float, decimals: int = DECIMALS) -> str:
    """A number in digits, never in scientific notation: 1e-6 is 0.000001, 1e-7 is 0, 2.0 is 2."""
    if not math.isfinite(number):
        return "0"
    digits = f"{Decimal(repr(float(number))):.{decimals}f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits in ("-0", "") else digits


def round_numbers(value: Any, decimals: int = DECIMALS) -> Any:
    """The same value with every number rounded; what is no number stays. 0.1 + 0.2 becomes 0.3, -0.0 becomes 0."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        found = float(number_text(value, decimals))
        return int(found) if found.is_integer() and abs(found) < 2**53 else found
    if isinstance(value, Mapping):
        return {name: round_numbers(inner, decimals) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(inner, decimals) for inner in value]
    return value


def write(value: Any, decimals: int = DECIMALS) -> str:
    """A value as JSON in one line without spaces, its numbers by `number_text`: one document has one text."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return number_text(value, decimals)
    if isinstance(value, Mapping):
        inner = (f"{json.dumps(str(name), ensure_ascii=False)}:{write(one, decimals)}" for name, one in value.items())
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(write(one, decimals) for one in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def in_order(parts: Sequence[Any], order: Sequence[str], kind: str = "op") -> list[Any]:
    """Operations sorted by their class; within a class they stay as they are, and unknown ones come last."""
    place = {name: number for number, name in enumerate(order)}
    return sorted(parts, key=lambda part: place.get(_kind(part, kind), len(order)))


def canonical(
    document: Any, order: Sequence[str], parts_in: str = "operations", kind: str = "op", decimals: int = DECIMALS
) -> Any:
    """A document with rounded numbers and its operations in order: what is said alike is then written alike."""
    rounded = round_numbers(document, decimals)
    if isinstance(rounded, dict) and isinstance(rounded.get(parts_in), list) and order:
        rounded[parts_in] = in_order(rounded[parts_in], order, kind)
    return rounded


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every single value of a document with its path, such as ("size[0]", 0.04)."""
    if isinstance(value, Mapping):
        return [
            leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}.{name}" if path else str(name))
        ]
    if isinstance(value, list | tuple):
        return [leaf for place, inner in enumerate(value) for leaf in leaves(inner, f"{path}[{place}]")]
    return [(path, value)]


@dataclass(frozen=True)
class Body:
    """What a document's operations make, as far as they can be reckoned: volume, and the box around it (cubed units).

    Bodies are taken as apart from each other, and holes as within them; fillets are left out.
    """

    volume: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def is_like(self, other: "Body", within: float = WITHIN) -> bool:
        """Whether volume and the box's place and sides agree to a share of the larger box's longest side."""
        side = max(high - low for body in (self, other) for low, high in zip(body.low, body.high, strict=True))
        ends = zip((*self.low, *self.high), (*other.low, *other.high), strict=True)
        is_boxed = all(abs(one - another) <= within * side for one, another in ends)
        return is_boxed and abs(self.volume - other.volume) <= within * max(abs(self.volume), abs(other.volume))


def body_of(document: Any) -> Body | None:
    """The body of a document with the operations of the CAD recipe; None where nothing is drawn out, or badly."""
    try:
        parts = document["operations"]
        outlines = {part["profile"]: part for part in parts if part["op"] == "sketch"}
        boxes: dict[str, tuple[list[float], list[float]]] = {}
        volume = 0.0
        for part in parts:
            volume += _MAKES.get(part["op"], _nothing)(part, outlines, boxes)
    except (KeyError, TypeError, IndexError, ValueError):
        return None
    if not boxes:
        return None
    low = [min(box[0][axis] for box in boxes.values()) for axis in range(3)]
    high = [max(box[1][axis] for box in boxes.values()) for axis in range(3)]
    return Body(volume, (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _area(outline: Mapping[str, Any]) -> float:
    width, height = (float(side) for side in outline["size"])
    return math.pi / 4 * width * height if outline["shape"] == "circle" else width * height


def _extrude(part: Any, outlines: Any, boxes: Any) -> float:
    outline, depth = outlines[part["profile"]], float(part["depth"])
    (x, y), (width, height) = outline["at"], outline["size"]
    low = [x - width / 2, y - height / 2, min(0.0, depth)]
    boxes[part["profile"]] = (low, [x + width / 2, y + height / 2, max(0.0, depth)])
    return _area(outline) * abs(depth)


def _cut(part: Any, outlines: Any, _: Any) -> float:
    return -_area(outlines[part["profile"]]) * abs(float(part["depth"]))


def _hole(part: Any, _: Any, __: Any) -> float:
    return -math.pi / 4 * float(part["diameter"]) ** 2 * abs(float(part["depth"]))


def _move(part: Any, _: Any, boxes: Any) -> float:
    low, high = boxes[part["profile"]]
    boxes[part["profile"]] = tuple(
        [end + float(way) for end, way in zip(box, part["move"], strict=True)] for box in (low, high)
    )
    return 0.0


def _nothing(_: Any, __: Any, ___: Any) -> float:
    return 0.0


_MAKES: dict[str, Callable[[Any, Any, Any], float]] = {
    "extrusion": _extrude, "cut": _cut, "hole": _hole, "transform": _move,
}  # fmt: skip


def _kind(part: Any, name: str) -> str:
    return str(part.get(name, "")) if isinstance(part, Mapping) else ""
