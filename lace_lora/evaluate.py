"""Is it good, and is it new: a run measured against its photographs, with what the numbers can and cannot show.

Pictures of the base model and of the LoRA are drawn at the same prompts and seeds (pairs) and measured question by
question (measuring); every picture and design is laid on the photographs that were learnt (copies); from that and the
log comes which checkpoint to take (choosing). All of it is kept in scores.json and shown in report.html.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from lace_lora import adapter as adapters
from lace_lora import (
    checkpoint,
    choosing,
    copies,
    copy_check,
    copy_pages,
    curves,
    exhibits,
    journal,
    measuring,
    opinions,
    pairs,
    pictures,
    presets,
    references,
    report,
    verdicts,
)  # fmt: skip
from lace_lora.config import Config
from lace_lora.copies import Features, Learnt
from lace_lora.errors import LaceError, PicturesError
from lace_lora.exhibits import Design, Exhibit, Photographs
from lace_lora.machine import Machine
from lace_lora.measuring import Judges, Looked
from lace_lora.pairs import Pairs
from lace_lora.presets import Settled
from lace_lora.run_folder import RunFolder
from lace_lora.scores import CopyCheck, Evaluation

STRIP_COLUMNS, STRIP_TILE_PX = 5, 192  # of pairs.png: so many prompts with the token, and as many without
SMALL_PX = 512  # of a photograph that is changed on opening, when it is compared with what was made

Say = Callable[[str], None]


def run(config: Config, *, say: Say = print) -> Evaluation:
    """Measure the run that the settings name; called again, it draws only what is missing and measures again.

    returns  what stands in scores.json; not complete, with what to do, where somebody stopped the drawing

    Raises AdapterError where nothing was trained yet, and ModelError, SettingsError or MachineError with what to do.
    """
    began = time.perf_counter()
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settled = presets.settle(config, machine)
    settings, own_unseen = _unseen_of(settled, config)
    run = RunFolder.of(settings)

    # Who measures, what is there to look at, and what must be drawn.
    if not own_unseen:
        exhibits.check_unseen(settings)
    judges = measuring.Judges.of(settings, machine, say)
    drawn = pairs.draw(settings, run, say=say)
    if drawn.missing:
        line = f"Stopped with {drawn.missing} pictures unfinished; what is drawn stays. Run the same again to go on."
        return Evaluation(run.name, _now(), (line,), facts={"missing": drawn.missing})
    if own_unseen:
        _draw_unseen(settings, say)
    photographs, why_none = _photographs(run, settings, say)
    designs, digest = exhibits.designs(run, say), _adapter_digest(run)
    of_step = _of_step(run, drawn, designs, digest)
    everything = _once(one for group in (*of_step.values(), [one.exhibit for one in designs]) for one in group)
    made = measuring.readable(judges.style, everything, say)

    # Is it good: one model at a time.
    looked = measuring.look(judges.style, photographs, drawn, made, say)
    scores = [
        *measuring.style(looked, photographs, why_none, drawn), *measuring.words(judges, settings, drawn),
        *measuring.sharpness(designs, photographs, say), *measuring.likeness_to_references(run, designs),
        *measuring.inception_score(judges, drawn),
    ]  # fmt: skip

    # Is it new, and which checkpoint to take.
    check = _copies(looked, photographs, why_none, made, settings, say)
    looks = [row for row in checkpoint.read_json_lines(run.log) if "val_loss" in row]
    copied = {pair.made: pair.is_copy for pair in check.pairs}
    seen = {step: [copied[one.name] for one in group if one.name in copied] for step, group in of_step.items()}
    choice = choosing.choose(looks, drawn.kept, seen)

    # What to think of it; kept, with pages to look at.
    found = Evaluation(
        run.name, _now(),
        judges=_labels(judges),
        counts={
            "training": len(photographs.learnt), "held out": len(photographs.unseen), "pairs": len(drawn.lora),
            "plain pairs": len(drawn.plain_lora), "designs": len(designs), "compared": len(check.pairs),
        },
        scores=tuple(scores), copies=check, overfitting=curves.verdict(looks) if looks else "",
        choice=choice.as_json(), facts=_facts(settings, drawn, digest, began),
    )  # fmt: skip
    found = replace(found, verdict=verdicts.verdict(found, copy_check.memorised(check, "pictures and designs")))
    _write_pages(run, check, made, photographs, drawn, designs)
    found.write(run)
    say(f"written   {run.scores}")
    say(f"report    {write_report(run)}")
    return found


def write_report(run: RunFolder) -> Path:
    """Write report.html from what the run's folder holds, with what people said of the pictures.

    Raises RunError where the folder holds no run.
    """
    return report.write(run, people=opinions.for_report(run))


# -- inside --


def _unseen_of(settled: Settled, asked: Config) -> tuple[Config, bool]:
    """The settings, and whether their unseen_dir is the demo's own: that lace is drawn only once it is needed.

    It says nothing of photographs that somebody brought, so then it is left out.
    """
    if settled.preset != "demo" or "unseen_dir" in asked.overridden:
        return settled.config, False
    if not presets.draws_its_own(settled):
        return settled.config.model_copy(update={"unseen_dir": None}), False
    return settled.config, settled.config.unseen_dir is not None


def _draw_unseen(settings: Config, say: Say) -> None:
    """Lace that the demo never learnt, into its own unseen_dir, unless it lies there."""
    from lace_lora.demo import draw

    folder = Path(str(settings.unseen_dir))
    if not (folder / f"lace_{draw.UNSEEN_COUNT - 1:03d}.jpg").is_file():
        say(f"Drawing lace that was never learnt into {folder} …")
        draw.write_lace_folder(folder, draw.UNSEEN_COUNT, draw.UNSEEN_SEED)


def _photographs(run: RunFolder, settings: Config, say: Say) -> tuple[Photographs, str]:
    """The run's photographs; where there are none any more, none, and why."""
    try:
        return exhibits.photographs(run, settings, say), ""
    except PicturesError as error:
        say(f"! {error}")
        return Photographs((), ()), str(error)


def _of_step(run: RunFolder, drawn: Pairs, designs: Sequence[Design], digest: str | None) -> dict[int, list[Exhibit]]:
    """The pictures that each checkpoint drew: pairs, samples of the training, and designs of the adapter's digest."""
    found = {step: list(group) for step, group in drawn.of_step.items()}
    for step in drawn.kept:
        samples = sorted(run.sample(step, 0).parent.glob("*.png"))
        found.setdefault(step, []).extend(Exhibit(path.relative_to(run.root).as_posix(), path, 0) for path in samples)
    found[drawn.candidate.step] += [one.exhibit for one in designs if one.row.get("adapter_digest") == digest]
    return found


def _once(exhibits: Iterable[Exhibit]) -> list[Exhibit]:
    """Each of them once, in their order."""
    return list({one.name: one for one in exhibits}.values())


def _copies(
    looked: Looked, photographs: Photographs, why_none: str, made: Sequence[Exhibit], settings: Config, say: Say
) -> CopyCheck:
    if why_none:
        return CopyCheck(refusal=why_none)
    features = None
    if looked.made is not None:
        features = Features(looked.made, looked.learnt, looked.unseen if len(looked.unseen) else None)
    known, unseen = (
        [Learnt(one.name, _picture(one), one.group) for one in group]
        for group in (photographs.learnt, photographs.unseen)
    )
    return copies.look([(one.name, one.path) for one in made], known, unseen, features, say, settings.cache_dir)


def _picture(photograph: Exhibit) -> copies.Picture:
    """Its file, or what opens it small where it is changed on opening: all of them at once would fill the memory."""
    if photograph.swatch is None or not photograph.swatch.changes_pixels:
        return photograph.path
    return partial(photograph.open, SMALL_PX)


def _labels(judges: Judges) -> dict[str, str]:
    """Who measured what."""
    found = {"style": judges.style.label, "words": judges.words.label if judges.words else "none"}
    return found | ({"other": judges.inception.label} if judges.inception else {})


def _facts(settings: Config, drawn: Pairs, digest: str | None, began: float) -> Mapping[str, object]:
    """What the numbers can be traced to."""
    return {
        "step": drawn.candidate.step, "adapter_digest": digest, "lora_digest": drawn.candidate.digest,
        "concept_token": drawn.candidate.facts.concept_token, "prompts": drawn.prompts,
        "plain_prompts": drawn.plain_prompts, "seeds": drawn.seeds,
        opinions.PAIRS: [[base.name, lora.name] for base, lora in zip(drawn.base, drawn.lora, strict=True)],
        opinions.OF_STEP: {str(step): [one.name for one in group] for step, group in drawn.of_step.items()},
        "lora_scale": settings.lora_scale, "versions": journal.versions(),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def _adapter_digest(run: RunFolder) -> str | None:
    try:
        return adapters.load(run.root).digest
    except LaceError:
        return None


def _write_pages(
    run: RunFolder, check: CopyCheck, made: Sequence[Exhibit], photographs: Photographs, drawn: Pairs,
    designs: Sequence[Design],
) -> None:  # fmt: skip
    """Base above LoRA, every picture beside its nearest photograph, and a page for each subset of the designs."""
    of_made, number = {one.name: one.path for one in made}, 0
    by_name = photographs.by_name
    for number, page in enumerate(
        copy_pages.sheets(check, of_made.__getitem__, lambda name: _picture(by_name[name])), 1
    ):
        checkpoint.write_file(run.nearest(number), partial(page.save, format="JPEG", quality=88))
    while (old := run.nearest(number := number + 1)).is_file():
        old.unlink()
    columns = [slice(None, None, -(-len(group) // STRIP_COLUMNS) or 1) for group in (drawn.base, drawn.plain_base)]
    rows = [
        [one.path for group, some in zip(side, columns, strict=True) for one in group[some]]
        for side in ((drawn.base, drawn.plain_base), (drawn.lora, drawn.plain_lora))
    ]
    told = [*drawn.told[columns[0]], *(f"without the token: {one}" for one in drawn.plain_told[columns[1]])]
    strip = pictures.strip(rows, ["base model", "with LoRA"], told, thumb_px=STRIP_TILE_PX)
    checkpoint.write_file(run.pairs, partial(strip.save, format="PNG"))
    file_of = {id(one.row): one.exhibit.path for one in designs}
    references.subset_pages(run, [one.row for one in designs], lambda row: file_of[id(row)])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
