"""A folder of photographs as a person works on it: captions, what is left out, swatches, what shows the same piece.

No widgets. Captions are kept in annotations.txt, the rest in dataset.json. Every change is written at once, on Drive
within a second, so that a session that dies loses no more than that; what others wrote there stays beside as `….bak`.
"""

import atexit
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from PIL import Image

from lace_lora import annotate, checkpoint, local_copies, stopping, suggest, survey, swatch
from lace_lora.annotations import DATASET, add_image, caption_fault, dataset_of, dataset_text, name_of
from lace_lora.annotations_file import AnnotationsFile
from lace_lora.caption_lint import Finding
from lace_lora.captioners import Captioner
from lace_lora.check_report import CheckReport
from lace_lora.config import Config
from lace_lora.errors import LaceError, PicturesError
from lace_lora.file_names import printable
from lace_lora.image_files import open_picture
from lace_lora.own_files import OwnFile, spare_of
from lace_lora.queries import token_pattern
from lace_lora.swatch import Swatch

VIEWS = ("all", "problems", "least sharp", "most compressed", "same piece", "without a caption", "left out")
# Each writing of a file on Drive is an upload, and an old version in its bin; elsewhere it takes a thousandth second.
SECONDS_BETWEEN_WRITES_ON_DRIVE = 1.0
_WITHOUT = (120, 120, 120)  # the grey of a picture that cannot be shown


@dataclass(frozen=True)
class Card:
    """One picture: what it is called and shows, its caption, what is done to it, and whether it is learnt."""

    name: str
    path: Path
    verdict: str
    problems: tuple[str, ...]
    caption: str  # its own words; in annotations.txt the instance prompt stands before them, or alone where it has none
    is_used: bool
    group: int | None = None  # pictures of one piece have one number; None for a piece that is there once
    sha256: str = ""
    swatch: Swatch | None = None
    small: Path | None = None  # a thumbnail that the check has made


class Album:
    """The cards of a checked folder, and the files in which they are kept.

    Other programs may change these files meanwhile: only what is changed here is changed there.

    say  is told what is noticed in the files, and where the earlier ones are kept

    Raises PicturesError for a dataset.json or annotations.txt that cannot be read: nothing is written over it.
    """

    def __init__(self, report: CheckReport, settings: Config, say: Callable[[str], None]) -> None:
        self.settings = settings
        self._folder = report.folder
        self._cache = Path(settings.cache_dir).expanduser()
        self._ranks = {"least sharp": report.least_sharp, "most compressed": report.most_compressed}
        self._before: list[dict[str, tuple[str, str]]] = []  # of each change of many: name -> caption before and after
        self._is_on_drive = local_copies.is_on_drive(report.folder, settings.drive_mount_path)
        annotations = AnnotationsFile(report.folder, annotate.file_of(settings), say, self._cache)
        lines = annotations.captions()  # those that cannot be read are refused before anything is shown
        # A picture without a line would not be learnt; the first change gives it one.
        self._without = {one.name: settings.instance_prompt for one in report.usable if one.name not in lines}
        self._captions = _Keeper(annotations, SECONDS_BETWEEN_WRITES_ON_DRIVE if self._is_on_drive else 0.0)
        self._decisions = OwnFile(report.folder / DATASET, say, spare_of(report.folder / DATASET, self._cache))
        known = {name_of(report.folder, one): one for one in dataset_of(self._folder).examples}
        captions = annotate.captions_of(settings, report, say)
        self._without |= {name: captions[name] for name in self._without.keys() & captions.keys()}
        groups = {name: number for number, group in enumerate(report.groups, 1) for name in group}
        self.cards: dict[str, Card] = {}
        for record in report.records:
            if record.name in self.cards and not record.is_usable:
                continue  # its name in another Unicode spelling is that of a picture that can be used
            said = known.get(record.name)
            self.cards[record.name] = Card(
                record.name, record.path, record.verdict, record.problems, self._own(captions.get(record.name, "")),
                record.is_usable and (said is None or said.use), groups.get(record.name), record.sha256,
                said.swatch if said else None, record.thumbnail,
            )  # fmt: skip

    # -- looking --

    def view(self, wanted: str = "all") -> list[Card]:
        """The cards of one of VIEWS: by name, but the worst first, and pictures of one piece side by side."""
        cards = list(self.cards.values())
        if wanted in self._ranks:
            return [self.cards[record.name] for record in self._ranks[wanted]]
        if wanted == "same piece":
            return sorted((one for one in cards if one.group), key=lambda one: (one.group, one.name))
        choose: dict[str, Callable[[Card], bool]] = {
            "all": lambda one: True,
            "problems": lambda one: bool(one.problems),
            "without a caption": lambda one: not one.caption and one.verdict != "unusable",
            "left out": lambda one: not one.is_used,
        }
        return [one for one in cards if choose[wanted](one)]

    def thumbnail(self, name: str) -> bytes:
        """A small JPEG of the picture as it is learnt, made once and kept in cache_dir; grey where that fails."""
        card = self.cards[name]
        key = swatch.digest(card.sha256 or hashlib.sha256(os.fsencode(card.path)).hexdigest(), card.swatch)
        file = survey.thumbnail_path(self._cache / survey.THUMBNAILS, key)
        with suppress(LaceError, OSError):  # Drive is away, the cache was deleted, the disk is full
            if card.small and not card.swatch and card.small.is_file():
                return card.small.read_bytes()
            if not file.is_file():
                small = swatch.apply(self.picture(name), card.swatch, card.path).copy()
                small.thumbnail((survey.THUMBNAIL_PX, survey.THUMBNAIL_PX))
                checkpoint.write_file(file, lambda partial: small.save(partial, "JPEG", quality=85))
            return file.read_bytes()
        grey = io.BytesIO()
        Image.new("RGB", (survey.THUMBNAIL_PX, survey.THUMBNAIL_PX), _WITHOUT).save(grey, "JPEG")
        return grey.getvalue()

    def picture(self, name: str) -> Image.Image:
        """The whole photograph, upright, without its swatch. Raises PicturesError where it does not open."""
        path = self.cards[name].path
        return open_picture(local_copies.local_copy(path, self._cache) if self._is_on_drive else path)

    def counts(self) -> str:
        """How far the work is, in a line."""
        used = [card for card in self.cards.values() if card.is_used]
        told = sum(bool(card.caption) for card in used)
        return f"{len(used)} of {len(self.cards)} pictures are learnt, {told} of them with a caption of their own"

    def lint(self) -> tuple[Finding, ...]:
        """What is wrong with the captions of the pictures that are learnt, as they stand in annotations.txt."""
        self.save()
        lines = self._captions.lines()
        told = {one.name: lines.get(one.name) or self._line(one) for one in self.cards.values() if one.is_used}
        return annotate.lint(self.settings, told)

    # -- changing --

    def write_caption(self, name: str, caption: str) -> str:
        """Give a picture a caption; an empty one stands for the instance prompt. Returns it as it is kept.

        Raises PicturesError for one that cannot be kept; nothing is changed then.
        """
        text = " ".join(caption.split())
        if text and (fault := caption_fault(text)):
            raise PicturesError(f"The caption {fault}.")
        self._tell({name: text})
        return self._line(self.cards[name])

    def use(self, name: str, is_used: bool) -> None:
        """Take a picture into the set that is learnt, or leave it out. Raises PicturesError for an unusable one."""
        card = self.cards[name]
        if is_used and card.verdict == "unusable":
            raise PicturesError(f"{printable(name)} cannot be used: {card.problems[0]}.")
        self._decide(name, use=is_used)

    def prepare(self, name: str, done: Swatch) -> None:
        """Keep what is done to a picture on opening it; Swatch() takes it back."""
        self._decide(name, done=done)

    def replace_all(self, find: str, by: str) -> int:
        """Replace a text in all captions, as it is written; returns in how many. `undo` takes it back.

        Raises PicturesError where a caption could not be kept then; nothing is changed.
        """
        found = {card.name: card.caption for card in self.cards.values() if find and find in card.caption}
        return self._change({name: " ".join(text.replace(find, by).split()) for name, text in found.items()})

    def mend(self, finding: Finding) -> int:
        """Mend what a finding of `lint` can mend, in the captions that it names; returns how many changed."""
        if finding.mend is None:
            return 0
        stands = self._captions.lines()
        lines = {name: stands.get(name) or self._line(self.cards[name]) for name in finding.names}
        return self._change({name: mended for name, text in lines.items() if (mended := finding.mend(text)) != text})

    def undo(self) -> int:
        """Take the last change of many captions back, but for those that were changed since; returns how many."""
        if not self._before:
            return 0
        changed = self._before.pop()
        back = {name: before for name, (before, after) in changed.items() if self.cards[name].caption == after}
        self._tell(back)
        self.save()
        return len(back)

    def suggest(
        self,
        captioner: Captioner,
        names: Sequence[str],
        *,
        overwrite: bool = False,
        stop: stopping.Stop | None = None,
        say: Callable[[str], None],
    ) -> suggest.Suggestions:
        """Ask for a caption of each of these pictures that has none of its own; saved one by one. `undo` takes it back.

        Raises the errors of suggest.captions; what was suggested before is saved then.
        """
        asked = [name for name in names if self.cards[name].is_used]
        before = {name: self.cards[name].caption for name in asked}
        last = dict(before)  # of each card, as these suggestions left it; another text was typed meanwhile and stays

        def save(told: Mapping[str, str]) -> None:
            new = {name: self._own(told.get(name, "")) for name in asked}
            new = {name: text for name, text in new.items() if text != last[name] == self.cards[name].caption}
            last.update(new)
            self._tell(new)

        try:
            found = suggest.captions(
                self._folder, asked, captioner, concept_token=self.settings.concept_token,
                existing={card.name: card.caption for card in self.cards.values() if card.caption}, save=save,
                swatches={card.name: card.swatch for card in self.cards.values() if card.swatch},
                instance_prompt=self.settings.instance_prompt, overwrite=overwrite, stop=stop, say=say,
            )  # fmt: skip
        finally:
            self._remember({name: text for name, text in before.items() if self.cards[name].caption == last[name]})
        self.save()
        return found

    def save(self) -> None:
        """Write what is not written yet. Raises PicturesError where the folder cannot be written."""
        self._captions.write()

    # -- keeping --

    def _own(self, line: str) -> str:
        """What a line says of its picture alone: without the prompt, which is put before it again on writing."""
        lead = suggest.lead_of(self.settings.concept_token, self.settings.instance_prompt)
        is_plain = line.strip().casefold() == self.settings.instance_prompt.strip().casefold()
        return "" if is_plain else line.removeprefix(f"{lead}, ")

    def _line(self, card: Card) -> str:
        """The card's line in annotations.txt: a caption that lacks the concept token has the prompt put before it."""
        token = self.settings.concept_token
        if not card.caption or re.search(token_pattern(token), card.caption, re.I):
            return card.caption or self.settings.instance_prompt
        return f"{suggest.lead_of(token, self.settings.instance_prompt)}, {card.caption}"

    def _change(self, captions: Mapping[str, str]) -> int:
        """Change many captions at once, so that undo takes all of them back."""
        for name, text in captions.items():
            if text and (fault := caption_fault(text)):
                raise PicturesError(f"The caption of {printable(name)} {fault} then; nothing was changed.")
        before = {name: self.cards[name].caption for name in captions}
        self._tell(captions)
        self._remember(before)
        self.save()
        return len(captions)

    def _remember(self, before: Mapping[str, str]) -> None:
        changed = {name: (text, self.cards[name].caption) for name, text in before.items()}
        if changed := {name: pair for name, pair in changed.items() if pair[0] != pair[1]}:
            self._before.append(changed)

    def _tell(self, captions: Mapping[str, str]) -> None:
        """Give these cards their captions, and write those that changed."""
        for name, text in captions.items():
            self.cards[name] = replace(self.cards[name], caption=self._own(text))
        if captions:
            self._captions.change(self._without | {name: self._line(self.cards[name]) for name in captions})
            self._without = {}

    def _decide(self, name: str, *, use: bool | None = None, done: Swatch | None = None) -> None:
        """Keep one decision; what others decided of the same picture meanwhile stays, and is taken over."""
        card = self.cards[name]
        dataset = add_image(dataset_of(self._folder), card.path, use=use, swatch=done)
        self._decisions.write(dataset_text(dataset))
        said = next(one for one in dataset.examples if name_of(self._folder, one) == name)
        self.cards[name] = replace(card, is_used=said.use and card.verdict != "unusable", swatch=said.swatch)


class _Keeper:
    """Writes captions after each change, but not more often than every so many seconds; the last change always."""

    def __init__(self, file: AnnotationsFile, pause_seconds: float) -> None:
        self._file, self._pause = file, pause_seconds
        self._waiting: dict[str, str | None] = {}
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._written, self._failure = -pause_seconds, ""
        if pause_seconds:
            atexit.register(self._late)

    def change(self, captions: Mapping[str, str]) -> None:
        """Write now, or as soon as the pause is over. Raises PicturesError, also for what failed meanwhile."""
        with self._lock:
            self._waiting |= captions
            left = self._written + self._pause - monotonic()
            if left <= 0:
                self.write()
            elif self._timer is None:
                self._timer = threading.Timer(left, self._late)
                self._timer.daemon = True
                self._timer.start()
            if self._failure:
                failure, self._failure = self._failure, ""
                raise PicturesError(failure)

    def lines(self) -> dict[str, str]:
        """What stands in the file now. Raises PicturesError for lines that cannot be read."""
        return self._file.captions()

    def write(self) -> None:
        """Write what waits; what cannot be written now waits for the next time."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._waiting:
                self._file.change(self._waiting)
                self._waiting, self._written, self._failure = {}, monotonic(), ""

    def _late(self) -> None:
        """In the timer's thread and at the end, where an error would be lost: it is raised at the next change."""
        with self._lock:
            try:
                self.write()
            except LaceError as error:
                self._failure = str(error)
