"""Pairs of texts from JSONL files, as they are learnt: checked, parted into learnt and held out, turned into messages.

A pair is what is read and what is to be written. Documents are brought into one form first, so that what means the same
is learnt as the same. Pairs about one document are held out together.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lace_lora import checkpoint
from lace_lora.counting import counted
from lace_lora.errors import TextError
from lace_lora.recipe import Direction, Recipe
from lace_lora.validate import Validator

SHOWN = 5  # problems that are named
FEWEST = 4  # pairs that can be parted into learnt and held out
SIGNS_A_TOKEN = 16  # far above what any tokenizer has on average (about 4)

Message = dict[str, str]


@dataclass(frozen=True)
class Pair:
    """One pair. `document` is in canonical form; where it stands in the file is `line`, from 1."""

    text: str
    document: str
    kind: str = ""
    graph_type: str = ""
    group: str = ""
    line: int = 0

    def asked(self, direction: Direction) -> str:
        """What the model reads."""
        return self.text if direction == "forward" else self.document

    def wanted(self, direction: Direction) -> str:
        """What it is to write."""
        return self.document if direction == "forward" else self.text


@dataclass(frozen=True)
class Pairs:
    """The pairs of a file: learnt, held out; a sentence on each row that was left out, and on what others lose."""

    learnt: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of all pairs and of how they are parted."""
        rows = [(pair.text, pair.document) for part in (self.learnt, self.held_out) for pair in part]
        text = json.dumps([len(self.learnt), rows], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()

    def __str__(self) -> str:
        kinds: dict[str, int] = {}
        for pair in (*self.learnt, *self.held_out):
            name = " ".join(word for word in (pair.graph_type, pair.kind) if word)
            kinds[name] = kinds.get(name, 0) + 1
        told = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()) if name)
        line = f"pairs       {len(self.learnt)} learnt, {len(self.held_out)} held out{f': {told}' if told else ''}"
        shown = [f"! {problem}" for problem in self.problems[:SHOWN]]
        more = len(self.problems) - SHOWN
        noted = [f"! {note}" for note in self.notes]
        return "\n".join([line, *shown, *([f"! and {more} more"] if more > 0 else []), *noted])


def read(path: Path, recipe: Recipe, validator: Validator) -> Pairs:
    """The pairs of a JSONL file whose rows have the recipe's fields; a document may be text or JSON itself.

    A row that cannot be used is named and left out. Raises TextError where there is no file, or too little in it.
    """
    lines = _lines(path)
    found: list[Pair] = []
    problems: list[str] = []
    unkept: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        if line.strip() and len(found) < (recipe.max_samples or len(lines)):
            pair = _pair(line, number, recipe, validator, unkept)
            if isinstance(pair, str):
                problems.append(pair)
            elif not recipe.kinds or pair.kind in recipe.kinds:
                found.append(pair)
    if len(found) < FEWEST:
        first = f" The first problem: {problems[0]}" if problems else ""
        wanted = f"{recipe.fields.input} and {recipe.fields.output}"
        raise TextError(
            f"{path} has {counted(len(found), 'pair')} that can be used, and {FEWEST} are needed. Each line must be a "
            f"JSON object with {wanted}.{first}"
        )
    learnt, held_out = apart(found, recipe.validation_fraction, recipe.seed)
    notes = [f"{name} is not learnt: only labels are (in {count} of the graphs)" for name, count in unkept.items()]
    if recipe.validation_fraction and not held_out:
        notes.append("nothing is held out, so nothing can be measured: all pairs are about one document")
    return Pairs(tuple(learnt), tuple(held_out), tuple(problems), tuple(notes))


def write(path: Path, pairs: Pairs) -> None:
    """Keep the pairs with a run, each with whether it was held out."""
    parts = enumerate((pairs.learnt, pairs.held_out))
    rows = [asdict(pair) | {"held_out": bool(held)} for held, part in parts for pair in part]
    checkpoint.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_kept(path: Path) -> Pairs:
    """The pairs that `write` kept. Raises TextError where there are none."""
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    try:
        for row in checkpoint.read_json_lines(path):
            parts[bool(row.pop("held_out"))].append(Pair(**row))
    except (KeyError, TypeError) as error:
        raise TextError(f"{path} is not as it was written ({error}). Train the run again.") from error
    if not parts[0]:
        raise TextError(f"{path} holds no pairs. Train first: lace-lora text train")
    return Pairs(tuple(parts[0]), tuple(parts[1]))


def apart(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn and pairs held out, by group: the same every time, in the order of the file.

    Groups are drawn by their own digest and the seed, so that more pairs move none of the earlier ones.
    """
    groups = sorted({pair.group for pair in pairs}, key=lambda group: _draw(group, seed))
    wanted, held, count = max(round(len(pairs) * fraction), int(fraction > 0)), set(), 0
    sizes = {group: sum(pair.group == group for pair in pairs) for group in groups}
    for group in groups[:-1]:  # one at least is learnt
        if count >= wanted:
            break
        held.add(group)
        count += sizes[group]
    return [pair for pair in pairs if pair.group not in held], [pair for pair in pairs if pair.group in held]


def messages(recipe: Recipe, direction: Direction, asked: str) -> list[Message]:
    """What the model is given: who it is, and what is asked of it."""
    return [{"role": "system", "content": recipe.prompt_of(direction)}, {"role": "user", "content": asked}]


def again(before: Sequence[Message], written: str, reasons: Sequence[str]) -> list[Message]:
    """The next attempt: what was written, and what was wrong with it."""
    wrong = "\n".join(reasons[:SHOWN])
    return [
        *before,
        {"role": "assistant", "content": written},
        {"role": "user", "content": f"That is not right:\n{wrong}\nWrite the whole document again."},
    ]


def fitting(tokenizer: Any, conversation: Sequence[Message]) -> list[Message]:
    """Messages as the tokenizer's chat template takes them.

    Where it refuses a system role (gemma), that text becomes the beginning of the user's first turn. Raises TextError
    where the tokenizer has no chat template.
    """
    listed = [dict(message) for message in conversation]
    if not getattr(tokenizer, "chat_template", None):
        raise TextError(
            "This model's tokenizer has no chat template, so it cannot be asked. Choose an instruction model, such as "
            "microsoft/Phi-3-mini-4k-instruct or Qwen/Qwen2.5-1.5B-Instruct."
        )
    from jinja2.exceptions import TemplateError

    try:
        said = tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return _merged(listed)
    # Some templates leave a system turn out without a word, which is worse than refusing it.
    return listed if listed[0]["content"].strip() in said else _merged(listed)


def row_of(pair: Pair, recipe: Recipe, direction: Direction, tokenizer: Any) -> dict[str, list[Message]]:
    """A pair as TRL learns it: the loss is on `completion` alone."""
    prompt = fitting(tokenizer, messages(recipe, direction, pair.asked(direction)))
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": pair.wanted(direction)}]}


def _merged(conversation: Sequence[Message]) -> list[Message]:
    if not conversation or conversation[0]["role"] != "system":
        return list(conversation)
    first, second, *rest = conversation
    return [{"role": "user", "content": f"{first['content']}\n\n{second['content']}"}, *rest]


def _lines(path: Path) -> list[str]:
    """The lines of a text file; signs that are breaks of a line elsewhere (U+2028) may stand within one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TextError(f"There is no file of pairs {path} ({error.strerror}). Give one with --data.") from error
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextError(
            f"{path} is no UTF-8 text (line {line}). Save it with the encoding UTF-8, as JSONL: one JSON object a line."
        ) from error


def _pair(line: str, number: int, recipe: Recipe, validator: Validator, unkept: Counter[str]) -> Pair | str:
    """A row as a pair, or a sentence on why it is none; what is lost of its graph is counted in `unkept`."""
    names = recipe.fields
    if len(line) > (most := SIGNS_A_TOKEN * recipe.max_length):  # reading a graph of 5 MB takes many minutes
        return f"line {number} has {len(line):,} signs; with max_length {recipe.max_length} no more than {most:,} fit"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"line {number} is no JSON: {error}"
    if not isinstance(row, Mapping):
        return f"line {number} is no object with names and values"
    missing = [name for name in (names.input, names.output) if not (str(row[name]).strip() if row.get(name) else "")]
    if missing:
        return f"line {number} has no {' and no '.join(missing)}"
    raw = row[names.output]
    raw = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
    try:
        checked = validator.put_right(validator.reader(raw))
    except ValueError as error:
        return f"line {number} has no document that can be read: {error}"
    if not checked.is_valid:
        return f"line {number}: {checked.issues[0]}"
    unkept.update(getattr(checked.document, "unkept", ()))
    words = {name: str(row.get(field, "")) if field else "" for name, field in names.model_dump().items()}
    text = str(row[names.input]).strip()
    return Pair(text, checked.text, words["kind"], words["graph_type"], words["group"] or checked.text, number)


def _draw(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {group}".encode("utf-8", "backslashreplace")).hexdigest()
