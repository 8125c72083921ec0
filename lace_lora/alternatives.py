"""Alternatives in a prompt: a {white|cream} {rosette|border} is read once and gives its combinations by number.

From number to number every group takes its next alternative (white rosette, cream border, …). As many numbers as there
are combinations have each of them once, then they begin again. The alternatives of a group in a group belong to the
outer one too; an alternative may be empty: a {fine |}doily. A backslash before { | } or another backslash makes that a
plain sign; a | outside of braces is one without it.
"""

import math
import re
from dataclasses import dataclass

from lace_lora.errors import SettingsError

_DEEPEST = 20  # groups in groups


@dataclass(frozen=True)
class Alternatives:
    """A prompt with groups of alternatives: texts and groups in their order, each group a tuple of its alternatives."""

    parts: tuple["str | tuple[Alternatives, ...]", ...]

    @property
    def size(self) -> int:
        """How many combinations there are."""
        return math.prod(_size(part) for part in self.parts if not isinstance(part, str))

    def at(self, number: int) -> str:
        """Combination `number` (from 0; after the last one the first comes again), every group a step further.

        Where c runs through the p combinations of the groups before and the next group has s alternatives, that one
        takes (number + number // lcm(p, s)) mod s. Steps alone would meet only every gcd(p, s)th pair; the second term
        moves the group by one each time they come round, so all p·s pairs are met once.
        """
        before = self.size
        number %= before
        pieces = []
        for part in reversed(self.parts):
            if isinstance(part, str):
                pieces.append(part)
                continue
            own = _size(part)
            before //= own
            pieces.append(_pick(part, (number + number // math.lcm(before, own)) % own))
            number %= before
        return "".join(reversed(pieces))


def alternatives(text: str, prompt: Alternatives | None = None) -> Alternatives:
    """A text with its groups read.

    prompt  stands in for {prompt}; None where that is a word like others

    Raises SettingsError, without saying whose text it is, with the place of a brace that has no other half.
    """
    groups: list[tuple[int, list[list[str | tuple[Alternatives, ...]]]]] = [(0, [[]])]  # open ones: place, alternatives
    for found in re.finditer(r"\\([{|}\\])|([{|}])|[^\\{|}]+|\\", text):
        escaped, sign = found.groups()
        options = groups[-1][1]
        if sign == "{":
            groups.append((found.start(), [[]]))
        elif sign is None or (sign == "|" and len(groups) == 1):
            options[-1].append(escaped or found[0])
        elif sign == "|":
            options.append([])
        elif len(groups) == 1:
            raise SettingsError(f"has a }} without its {{ {_at(text, found.start())}")
        else:
            groups.pop()
            is_place = options == [["prompt"]]
            group = (prompt,) if prompt and is_place else tuple(Alternatives(tuple(one)) for one in options)
            groups[-1][1][-1].append(group)
        if len(groups) > _DEEPEST:
            raise SettingsError(f"has groups more than {_DEEPEST} deep {_at(text, found.start())}")
    if len(groups) > 1:
        raise SettingsError(f"has a {{ that is never closed {_at(text, groups[-1][0])}")
    return Alternatives(tuple(groups[0][1][0]))


def literal(text: str) -> str:
    """A text written so that it holds no alternatives: for captions, and for a prompt out of a picture's metadata."""
    return re.sub(r"([{|}\\])", r"\\\1", text)


# -- inside --


def _size(group: tuple[Alternatives, ...]) -> int:
    return sum(one.size for one in group)


def _pick(group: tuple[Alternatives, ...], number: int) -> str:
    for one in group:
        if number < one.size:
            return one.at(number)
        number -= one.size
    raise IndexError(number)


def _at(text: str, place: int) -> str:
    return f"at character {place + 1}, before {text[place + 1 : place + 31]!r}"
