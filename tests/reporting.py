"""What the tests of the report and of comparing share: a run's folder with every file that a report reads."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import config_text
from lace_lora.config import load
from lace_lora.run_folder import RunFolder
from lace_lora.scores import CopyCheck, Evaluation, Nearest, Score

SCORES = (
    Score("style_match", "style match", "style", 0.8312345, 0.7112, 0.9234, 30, "1 is as near as real lace.", "higher"),
    Score("style_held_out", "unseen lace", "style", 0.0031, -0.012, 0.0192, 12, "chance gives such numbers."),
    Score("words_lora", "words shown", "words", 0.2512, 0.2401, 0.2623, 30, "a little less than before.", "higher"),
    Score("ssim", "structure", "reference", None, refusal="There are no reference drawings."),
    Score("inception", "Inception Score", "other", 1234.5678, count=24, means="It needs 5000 pictures."),
)
PAIRS = (
    Nearest("images/sheet/refined_output_000.png", "lace_3.jpg", 0.5931, False, "mirrored", 0.31),
    Nearest("images/sheet/refined_output_001.png", "lace_1.jpg", 0.41, False),
)
EVALUATION = Evaluation(
    run="rose",
    written="2026-11-21T15:00:00+00:00",
    verdict=("The style was learnt <well>.", "Nothing is a copy."),
    judges={"style": "weight-free", "words": "openai/clip"},
    counts={"training": 54, "held out": 6, "designs": 2},
    scores=SCORES,
    copies=CopyCheck("correlation of threads", 0.6134, 47, PAIRS),
    overfitting="still learning: the held-out loss fell.",
    choice={
        "advice": "take step 3: it copies nothing.",
        "rows": [
            {"step": 2, "val_loss": 0.61, "low": 0.58, "high": 0.64, "is_kept": False, "is_advised": False},
            {"step": 3, "val_loss": 0.52, "low": 0.49, "high": 0.55, "is_kept": True, "is_advised": True},
        ],
        "finalists": [3, 4],
    },
    facts={"adapter_digest": "ab" * 32, "seeds": [0, 1]},
)  # fmt: skip


def reported_run(root: Path, evaluation: Evaluation = EVALUATION, **settings: Any) -> RunFolder:
    """A run's folder with every file that a report reads; its pictures are small."""
    run = RunFolder(root).create()
    record = {"state": "finished", "step": 4, "total": 4, "versions": {"torch": "2"}, "data_digest": "d1",
              "updated": "2026-11-21T14:39:43+00:00", "seconds_per_step": 1.25, "peak_vram_gb": 9.8}  # fmt: skip
    run.record.write_text(json.dumps(record))
    looks = [{"step": step, "val_loss": 1 / (step + 1), "train_probe_loss": 0.5 / (step + 1)} for step in (0, 2, 3, 4)]
    rows = [{"step": step, "loss": 1 / step, "seconds": 0.5} for step in range(1, 5)] + looks
    run.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.annotations.write_text("".join(f"lace_{number}.jpg\ta photo of <sks>\n" for number in range(60)))
    run.config.write_text(config_text.to_yaml(load(run_name="rose", **settings)), encoding="utf-8")
    run.adapter.mkdir()
    card = {"concept_token": "<sks>", "instance_prompt": "a photo of <sks>", "base_model": "demo", "rank": 4,
            "sha256": {run.adapter_weights.name: "ab" * 32}}  # fmt: skip
    run.adapter_card.write_text(json.dumps(card))
    evaluation.write(run)
    grid = run.evaluation / "grid"
    grid.mkdir()
    (grid / "grid.json").write_text(json.dumps({"rows": [{"step": 1}, {"step": 2}]}))
    run.samples.mkdir()
    sheet = run.sheet("sheet")
    sheet.root.mkdir(parents=True)
    pictures = [run.pairs, run.nearest(1), run.nearest(2), grid / "grid.png", run.film_strip, sheet.contact_sheet]
    pictures += [sheet.root / name for name in ("refined_output_000.png", "refined_output_000_repeat.png")]
    for number, path in enumerate(pictures):
        Image.new("RGB", (90 if path != run.pairs else 3000, 40), (20 * number, 90, 120)).save(path)
    design = {"index": 0, "prompt": "<sks> with <b>bold</b> leaves", "refined": "refined_output_000.png", "base": None,
              "repeat": "straight", "seam": 1.0625, "seed": 3}  # fmt: skip
    sheet.manifest.write_text(json.dumps(design) + "\n")
    sheet.stars.write_text('{"starred": [{"index": 0}]}')
    return run


class Seen(HTMLParser):
    """A page as a browser reads it: its tags with their attributes, and its text, each with the tags around it."""

    EMPTY, INLINE = {"meta", "br", "img"}, {"data", "span", "strong", "code", "a"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[list[tuple[str, dict[str, str | None]]], str]] = []
        self._open: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.EMPTY:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._space(tag)

    def handle_endtag(self, tag: str) -> None:
        self._space(tag)
        while len(self._open) > 1 and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append((list(self._open), data))

    def _space(self, tag: str) -> None:
        if tag not in self.INLINE:
            self.texts.append(([("", {})], " "))

    @property
    def text(self) -> str:
        """All that a person can read, in one line."""
        unseen = {"style", "title"}
        return " ".join("".join(data for around, data in self.texts if not {t for t, _ in around} & unseen).split())
