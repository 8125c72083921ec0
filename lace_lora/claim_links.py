"""How claims fit together: names given twice, parents that are not there, circles, figures and parents that disagree.

A claim may only refer to one before it (37 CFR 1.75 (c)), so of claims that refer to each other in a circle those are
at fault that refer to a later one, or to themselves; the others stay.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lace_lora import claim_language
from lace_lora.claims import ClaimRow, Fault, Key, Rows
from lace_lora.file_names import printable
from lace_lora.patent_recipe import Recipe


@dataclass(frozen=True)
class Claim:
    """A claim that fits with the others.

    place      where it stands in its file
    text       as it was written; normalized is the same in the recipe's plain words
    category   its own, its parent's, or what its text is about
    parents    the claims that it refers to; empty for an independent one
    root       the independent claim at the end of its first parents, itself where it is one
    features   what characterises it, element by element
    figures    as the row or the text names them
    language   two letters, or unknown where the text is short
    reference  a drawing of it, or None
    """

    place: str
    key: Key
    text: str
    normalized: str
    category: str
    parents: tuple[Key, ...]
    root: Key
    features: tuple[str, ...]
    figures: tuple[str, ...]
    cpc: tuple[str, ...]
    title: str
    language: str
    reference: Path | None

    @property
    def claim_id(self) -> str:
        """Its name within its patent."""
        return self.key[1]

    @property
    def patent_id(self) -> str:
        """The patent's name, empty where the file tells none."""
        return self.key[0]


@dataclass(frozen=True)
class Linked:
    """Claims that can be used, what is wrong with all others in the order of their rows, and how many rows there were.

    notes  what was passed over or put in, for a person to look at
    """

    claims: tuple[Claim, ...]
    faults: tuple[Fault, ...]
    count: int
    notes: tuple[str, ...] = ()


def linked(rows: Rows, recipe: Recipe) -> Linked:
    """Check how the rows of files fit together; a row that does not is set aside, and no other because of it."""
    faults = list(rows.faults)
    first: dict[Key, str] = {}
    for key, place in rows.known:
        first.setdefault(key, place)
    by_number = _by_number(first)
    usable: dict[Key, tuple[str, ClaimRow]] = {}
    parents: dict[Key, tuple[Key, ...]] = {}
    for place, row in rows.rows:
        if first[row.key] != place:
            said = f"{printable(row.claim_id)!r} is there already, in {first[row.key]}; give it a name of its own"
            faults.append(Fault(place, "claim_id", "duplicate", said))
            continue
        found, wrong = _parents(row, first, by_number)
        wrong += _figures(row)
        faults += [Fault(place, name, kind, said) for name, kind, said in wrong]
        if not wrong:
            usable[row.key] = (place, row)
        parents[row.key] = found
    for key, others in _circles(parents).items():
        if key in usable:
            place = usable.pop(key)[0]
            said = f"refers in a circle to {_named(others)}; a claim can only refer to one before it"
            faults.append(Fault(place, "dependent_on", "circle", said))
        parents[key] = ()
    claims = _claims(usable, parents, recipe)
    faults += [
        Fault(usable[key][0], "category", "category missing", "is empty, and the text does not tell what is claimed")
        for key in usable if key not in claims
    ]  # fmt: skip
    order = {place: number for number, place in enumerate(rows.places)}
    faults.sort(key=lambda fault: order[fault.place])
    return Linked(tuple(claims.values()), tuple(faults), len(order), rows.notes)


# -- inside --


def _by_number(keys: Iterable[Key]) -> Mapping[tuple[str, str, int], Key]:
    """Claims by patent, what stands before the number in their name, and that number."""
    found: dict[tuple[str, str, int], Key] = {}
    for key in keys:
        if number := _numbered(key[1]):
            found.setdefault((key[0], *number), key)
    return found


def _numbered(claim_id: str) -> tuple[str, int] | None:
    """ "US1-claim-12" is ("US1-claim-", 12); None where a name does not end in a number."""
    match = re.fullmatch(r"(.*?)(\d{1,6})", claim_id)
    return (match[1], int(match[2])) if match else None


def _parents(
    row: ClaimRow, known: Mapping[Key, str], by_number: Mapping[tuple[str, str, int], Key]
) -> tuple[tuple[Key, ...], list[tuple[str, str, str]]]:
    """The claims that a row refers to, and what is wrong with that."""
    told = tuple((row.patent_id, name) for name in row.dependent_on)
    missing = [name for name in row.dependent_on if (row.patent_id, name) not in known]
    if missing:
        return (), [("dependent_on", "parent missing", f"there is no claim {_quoted(missing)} to refer to")]
    said = claim_language.claims_in(row.claim_text)
    own = _numbered(row.claim_id)
    if not said or own is None:
        return told, []
    prefix = own[0]
    if told:
        numbers = {number[1] for name in row.dependent_on if (number := _numbered(name))}
        if numbers and not numbers & set(said):
            wrong = f"is {_quoted(row.dependent_on)}, but the text refers to claim {', '.join(map(str, said))}"
            return told, [("dependent_on", "parents differ", wrong)]
        return told, []
    found = [by_number.get((row.patent_id, prefix, number)) for number in said]
    if None in found:
        lost = [str(number) for number, key in zip(said, found, strict=True) if key is None]
        return (), [("claim_text", "parent missing", f"refers to claim {', '.join(lost)}, which is not there")]
    return tuple(key for key in found if key), []


def _figures(row: ClaimRow) -> list[tuple[str, str, str]]:
    """Figures that the text names and the column does not; 2 is there where 2A is."""
    if not row.figure_ids:
        return []
    families = {*row.figure_ids, *(re.sub(r"\D+$", "", one) for one in row.figure_ids)}
    lost = [one for one in claim_language.figures_in(row.claim_text) if one not in families]
    if not lost:
        return []
    told = ", ".join(row.figure_ids)
    return [("figure_ids", "figure missing", f"has {told}, but the text refers to FIG. {', '.join(lost)}")]


def _circles(parents: Mapping[Key, Sequence[Key]]) -> dict[Key, tuple[Key, ...]]:
    """Claims at fault for a circle, each with those claims of the circle that it refers to and that come later."""
    left = {key: {one for one in found if one in parents} for key, found in parents.items()}
    children: dict[Key, set[Key]] = defaultdict(set)
    for key, found in left.items():
        for one in found:
            children[one].add(key)
    free = [key for key, found in left.items() if not found]
    while free:  # what has no parents left is in no circle
        done = free.pop()
        del left[done]
        for child in children[done]:
            if child in left:
                left[child].discard(done)
                free += [child] if not left[child] else []
    order = {key: number for number, key in enumerate(parents)}
    found_: dict[Key, tuple[Key, ...]] = {}
    for key in left:
        later = tuple(one for one in left[key] if order[one] >= order[key] and _reaches(left, one, key))
        if later:
            found_[key] = later
    return found_


def _reaches(parents: Mapping[Key, Iterable[Key]], start: Key, end: Key) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        one = waiting.pop()
        if one == end:
            return True
        new = {parent for parent in parents.get(one, ()) if parent not in seen}
        seen |= new
        waiting += new
    return False


def _claims(
    usable: Mapping[Key, tuple[str, ClaimRow]], parents: Mapping[Key, tuple[Key, ...]], recipe: Recipe
) -> dict[Key, Claim]:
    """The rows as claims, in their order; those of which nobody can tell what they are about are left out."""
    done: dict[Key, Claim] = {}
    for start in usable:
        chain = [start]  # parents before children, whatever their order in the file
        while chain:
            key = chain[-1]
            before = [one for one in parents[key] if one in usable and one not in done and one not in chain]
            if before:
                chain.append(before[0])
                continue
            chain.pop()
            if key not in done:
                done[key] = _claim(*usable[key], parents[key], done, recipe)
    return {key: done[key] for key in usable if done[key].category}


def _claim(place: str, row: ClaimRow, parents: tuple[Key, ...], done: Mapping[Key, Claim], recipe: Recipe) -> Claim:
    plain = claim_language.normalized(row.claim_text, recipe.terms)
    parent = next((done[key] for key in parents if key in done), None)
    category = row.category or (parent.category if parent else "")
    return Claim(
        place, row.key, row.claim_text, plain,
        category=category or claim_language.subject_of(plain, recipe.transitions),
        parents=parents,
        root=parent.root if parent else parents[0] if parents else row.key,
        features=claim_language.features_of(plain, recipe.transitions, recipe.longest_feature),
        figures=row.figure_ids or claim_language.figures_in(row.claim_text),
        cpc=tuple(dict.fromkeys((*row.cpc, *claim_language.cpc_in(row.claim_text)))),
        title=row.title,
        language=claim_language.language_of(row.claim_text, recipe.least_letters)[0],
        reference=Path(row.reference_path) if row.reference_path else None,
    )  # fmt: skip


def _named(keys: Sequence[Key]) -> str:
    return _quoted([key[1] for key in keys])


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(printable(name)) for name in names)
