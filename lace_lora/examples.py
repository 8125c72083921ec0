"""The pictures and captions of a run: read and checked, what the model reads of the words, and who is held out."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lace_lora import (
    annotate,
    cache,
    checkpoint,
    comparisons,
    data_utils,
    families,
    local_copies,
    near_duplicates,
    swatch,
)
from lace_lora.annotations import DATASET, Dataset, chosen, dataset_of
from lace_lora.config import Config
from lace_lora.data_utils import Example
from lace_lora.errors import PicturesError

Say = Callable[[str], None]
FAULTS_NAMED = 7  # photographs, in a sentence

Preprocess = Callable[[Image.Image], Image.Image]


def read(settings: Config, say: Say, preprocess: Preprocess | None = None) -> list[Example]:
    """Pictures with captions, from annotations.txt, which is written first where the folder has none.

    What dataset.json says of a picture is followed: its swatch comes with it, and one that it leaves out is not here.

    preprocess  a function from picture to picture (upright RGB, its swatch applied), for what no swatch can do; what it
                gives is learnt instead and kept as PNG files in cache_dir, while the photographs stay as they are

    Raises SettingsError or PicturesError where a caption lacks the concept token: its picture would teach the style to
    prompts that do not ask for it; PicturesError where all pictures are left out.
    """
    annotate.check_words(settings)
    types, images_dir = set(settings.image_types), Path(settings.images_dir).expanduser()
    path = annotate.file_of(settings)
    dataset = dataset_of(images_dir)
    if not path.is_file():
        annotate.run(settings, say=say)
        say(f"captions  written to {path}")
    examples = _kept(data_utils.read_annotations(path, images_dir), dataset, say)
    without = [one.path.name for one in examples if settings.concept_token.casefold() not in one.caption.casefold()]
    if without:
        raise PicturesError(
            f"{len(without)} of {len(examples)} captions in {path} do not hold the concept token "
            f"{settings.concept_token} (first: {without[0]}). "
            "Add it to them, or set concept_token to the word that they use."
        )
    listed = {one.path.resolve() for one in (*examples, *(one for one in dataset.examples if not one.use))}
    unlisted = [one.name for one in data_utils.list_images(images_dir, types) if one.resolve() not in listed]
    if unlisted:
        say(
            f"! {len(unlisted)} pictures have no line in {path} and are left out (first: {unlisted[0]}); "
            "`lace-lora annotate` adds those that can be read."
        )
    if local_copies.is_on_drive(images_dir, settings.drive_mount_path):
        examples = _copied(examples, settings, say)
    return cache.in_order(_preprocessed(examples, preprocess, settings, say) if preprocess else examples)


def _kept(examples: Sequence[Example], dataset: Dataset, say: Say) -> list[Example]:
    """The examples that dataset.json does not leave out, with their swatches."""
    kept, left_out = chosen(examples, dataset)
    if left_out:
        say(f"left out  {len(left_out)} of {len(examples)} pictures, as {DATASET} says")
    if not kept:
        raise PicturesError(f"{DATASET} leaves all {len(examples)} pictures out. Keep some of them in the gallery.")
    if changed := sum(one.swatch is not None and one.swatch.changes_pixels for one in kept):
        say(f"swatches  {changed} pictures are straightened, cropped or evenly lit on opening, as {DATASET} says")
    return kept


def _copied(examples: Sequence[Example], settings: Config, say: Say) -> list[Example]:
    """The examples with their copies on this machine. A training without some of them would be another one."""
    copies = local_copies.copy_all([one.path for one in examples], settings.cache_dir, say)
    if copies.faults:
        named = "; ".join(f"{path.name} {why}" for path, why in list(copies.faults.items())[:FAULTS_NAMED])
        raise PicturesError(
            f"{len(copies.faults)} of {len(examples)} photographs did not come from Drive: {named}. Mount Drive again "
            "and run again; those that came are not copied twice."
        )
    return [replace(one, place=copies.places[one.path]) for one in examples]


def _preprocessed(examples: Sequence[Example], preprocess: Preprocess, settings: Config, say: Say) -> list[Example]:
    """The examples with the pictures that a function makes of them, named by their pixels: nobody can name a function.

    Every picture is opened in every run, since only its result tells whether the function is still the same.
    """
    folder = Path(settings.cache_dir).expanduser() / "preprocessed"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"pictures  {len(examples)} handed to the preprocessor")
    made = []
    for one in examples:
        picture = preprocess(swatch.apply(cache.opened(one), one.swatch, one.path))
        if not isinstance(picture, Image.Image):
            raise PicturesError(
                f"{one.path.name}: the preprocessor gave {type(picture).__name__}, not a picture. Return a PIL image."
            )
        picture = picture.convert("RGB")
        name = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        file = folder / f"{name}.png"
        if not file.is_file():
            partial = file.with_name(f"{name}{checkpoint.PARTIAL}")
            picture.save(partial, "PNG", compress_level=1)  # 12 MP in a second; the usual level takes five
            os.replace(partial, file)
        made.append(replace(one, path=file, place=None, swatch=None))
    return made


def apart(examples: Sequence[Example], settings: Config, at_most: int, say: Say) -> tuple[list[int], list[int]]:
    """Numbers of the examples to learn, and of those held out: whole groups of pictures of one piece.

    at_most  held-out pictures; more would only make each look at them longer
    """
    everything = list(range(len(examples)))
    wished = min(int(settings.validation_fraction * len(examples)), at_most)
    if not settings.validation_fraction:
        return everything, []
    if not wished:
        say(f"held out  none: {settings.validation_fraction:g} of {len(examples)} pictures is less than one")
        return everything, []
    prints = cache.fingerprints(examples, settings.cache_dir, say)
    groups = comparisons.groups(prints, settings.cache_dir, say)
    content = [cache.digest_of(one.file) for one in examples]
    out = set(near_duplicates.held_out(groups, wished / len(examples), settings.seed, content))
    if not out:
        say("held out  none: all pictures show one piece, so none can stand aside")
    alike = sum(len(group) for group in groups if len(group) > 1)
    same = f"; {alike} pictures show a piece more than once and stay together" if alike else ""
    if out:
        say(f"held out  {len(out)} of {len(examples)} pictures, never learnt, to tell when to stop{same}")
    return [number for number in everything if number not in out], sorted(out)


def word_notes(settings: Config, examples: Sequence[Example]) -> list[str]:
    """How the model reads the words: the parts of the concept token, and the ends of captions that it never sees."""
    reader = families.reader(settings.pretrained_model)
    if settings.learn_concept_token:
        reads = f"becomes a word of its own, which begins as {settings.class_prompt!r}"
        for tokenizer in reader.tokenizers:
            tokenizer.add_tokens([settings.concept_token])
    else:
        reads = f"is read as plain text of {reader.count(settings.concept_token)} tokens"
    notes = [f"concept   {settings.concept_token} {reads}"]
    # A config.yaml may spell out the default; nobody asked for that.
    is_asked = settings.instance_prompt != Config.model_fields["instance_prompt"].default
    if is_asked and not any(settings.instance_prompt in one.caption for one in examples):
        notes.append(
            f"! {len(examples)} captions of annotations.txt are learnt, such as {examples[0].caption!r}, and not "
            f"instance_prompt {settings.instance_prompt!r}. To replace them: lace-lora annotate --overwrite."
        )
    cut = {one.path.name: words for one in examples if (words := reader.cut(one.caption))}
    if cut:
        name, words = next(iter(cut.items()))
        notes.append(
            f"! {len(cut)} captions are too long and lose their end (first: {name} loses {words!r}). "
            "Shorten them in annotations.txt."
        )
    return notes
