"""Claims as a Hugging Face dataset: a DatasetDict of train, validation and test, with the words and their tokens.

datasets (extra `patent`; Colab has it) is imported only where a dataset is asked for.
"""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lace_lora import checkpoint
from lace_lora.claim_prompts import Prompt
from lace_lora.claim_splits import SPLITS
from lace_lora.errors import MachineError

PACKAGE = "datasets"
IDS = ("input_ids", "input_ids_2")  # columns of the first and the second tokenizer, as SDXL calls its parts
_LISTS = ("dependent_on", "details", "figure_ids", "cpc")
Row = dict[str, Any]


def row_of(prompt: Prompt, reference_path: str | None) -> Row:
    """A claim with its prompt, as a row of claims.jsonl and of the dataset: texts, numbers and lists of texts only.

    reference_path  of its drawing, relative to the folder of both; None where it has none
    """
    claim = prompt.claim
    return {
        "patent_id": claim.patent_id,
        "claim_id": claim.claim_id,
        "claim_text": claim.text,
        "normalized_text": claim.normalized,
        "dependent_on": [key[1] for key in claim.parents],
        "category": claim.category,
        "title": claim.title,
        "main_feature": prompt.main_feature,
        "details": list(prompt.details),
        "figure_ids": list(claim.figures),
        "cpc": list(claim.cpc),
        "language": claim.language,
        "prompt": prompt.text,
        "negative_prompt": prompt.negative,
        "subset": prompt.subset,
        "tokens": prompt.tokens,
        "lost": prompt.lost,
        "reference_path": reference_path,
    }


def build(rows: Mapping[str, Sequence[Row]], tokenizers: Sequence[Any] | None = None) -> Any:
    """A datasets.DatasetDict of these rows.

    rows        of each split, as row_of makes them
    tokenizers  of the base model, in their order: a column of token ids for each, padded to its length (77)

    A split without rows is there, and empty. Raises MachineError where the package is not installed.
    """
    package = _package()
    features = _features(package, tokenizers)
    return package.DatasetDict(
        {
            name: package.Dataset.from_dict(_columns(rows.get(name, ()), features, tokenizers), features=features)
            for name in SPLITS
        }
    )


def digest(dataset: Any) -> str:
    """What tells one dataset from another: sha256 of all that its splits hold, whatever file they came from."""
    found = hashlib.sha256()
    for name in SPLITS:
        for row in dataset[name]:
            found.update(f"{name}\t{json.dumps(row, sort_keys=True, ensure_ascii=False)}\n".encode())
    return found.hexdigest()


def save(dataset: Any, folder: Path) -> None:
    """Write it so that datasets.load_from_disk reads it: the earlier one stays until the new one is whole."""
    package = _package()
    package.disable_progress_bars()
    one = dict.fromkeys(SPLITS, 1)  # an empty split would else have no file, and load_from_disk would fail on it
    checkpoint.save_folder(folder, lambda partial: dataset.save_to_disk(str(partial), num_shards=one))


def missing_package() -> str:
    """Why no dataset can be built here and what to do, or nothing."""
    if importlib.util.find_spec(PACKAGE):
        return ""
    return (
        f"A dataset for other programs needs the package {PACKAGE}, which is not installed. Type pip install {PACKAGE} "
        f"(in a notebook: %pip install {PACKAGE}), or do without it: --no-dataset."
    )


# -- inside --


def _package() -> Any:
    if problem := missing_package():
        raise MachineError(problem)
    return importlib.import_module(PACKAGE)


def _features(package: Any, tokenizers: Sequence[Any] | None) -> Any:
    """The kind of every column, declared, since an empty split or column would tell none."""
    text, texts = package.Value("string"), package.Sequence(package.Value("string"))
    names = ("patent_id", "claim_id", "claim_text", "normalized_text", "dependent_on", "category", "title",
             "main_feature", "details", "figure_ids", "cpc", "language", "prompt", "negative_prompt", "subset",
             "tokens", "lost", "reference_path")  # fmt: skip
    kinds: dict[str, Any] = {name: texts if name in _LISTS else text for name in names}
    kinds["tokens"] = package.Value("int32")
    ids = {name: package.Sequence(package.Value("int32")) for name, _ in zip(IDS, tokenizers or (), strict=False)}
    return package.Features(kinds | ids)


def _columns(rows: Sequence[Row], features: Any, tokenizers: Sequence[Any] | None) -> dict[str, list[Any]]:
    columns = {name: [row[name] for row in rows] for name in features if name not in IDS}
    texts = [row["prompt"] for row in rows]
    for name, tokenizer in zip(IDS, tokenizers or (), strict=False):
        long = tokenizer.model_max_length
        columns[name] = (
            tokenizer(texts, padding="max_length", max_length=long, truncation=True)["input_ids"] if texts else []
        )
    return columns
