"""The command `claims`: patent claims into a folder that annotate, train, generate and evaluate go on with."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lace_lora import config as declared
from lace_lora.errors import SettingsError

if TYPE_CHECKING:
    from lace_lora.claim_folder import Made, Wishes

NAMED = 10  # faults that are shown; all are in faults.csv


def claims(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="where drawings, prompts and settings go")],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE…", help="claims: .csv, .jsonl or USPTO .xml; none: an example")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="your own terms.yaml, template.yaml and so on")
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="TEXT", help='such as "Patent drawing of {category} with {main_feature}"')
    ] = None,
    concept_token: Annotated[str | None, typer.Option(metavar="TEXT", help="the word that calls the style")] = None,
    prompts_of: Annotated[
        str | None, typer.Option(metavar="WHICH", help="held-out (so without it), all, train, validation or test")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, max=1000, help="pictures for each prompt")] = None,
    shares: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="of train, validation and test; without it 0.8,0.1,0.1")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="another seed, another choice of what is held out")] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a dataset_config.json: the same recipe, split and seed again")
    ] = None,
    no_dataset: Annotated[bool, typer.Option("--no-dataset", help="without the dataset for other programs")] = False,
    pretrained_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="whose tokenizers count; else that of config.yaml")
    ] = None,
    config_files: Annotated[list[Path] | None, typer.Option("--config", metavar="FILE", help="settings file")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")] = False,
) -> None:
    """Check patent claims and make drawings with captions, prompts by subset and a dataset of them."""
    wishes = wished(
        like, recipe, template=template, concept_token=concept_token, drawn=prompts_of, count=count,
        shares=_numbers(shares), seed=seed,
    )  # fmt: skip
    settings = declared.load(*(config_files or declared.found()), pretrained_model=pretrained_model)
    print(described(run(files or (), output, wishes, settings, dataset=not no_dataset)))


def run(
    files: Sequence[str | Path],
    output: str | Path,
    wishes: "Wishes",
    settings: declared.Config,
    *,
    dataset: bool = True,
) -> "Made":
    """Make the folder; without files, of the example, which is drawn into it.

    Raises as claim_folder.make does.
    """
    from lace_lora import annotate, claim_folder, machine, patent_example, presets

    settled = presets.settle(settings, machine.Machine.here(settings.drive_mount_path)).config
    given = list(files) or [patent_example.write(Path(output).expanduser() / "example")]
    tokenizers = annotate.tokenizers_here(settled)
    return claim_folder.make(given, output, wishes, tokenizers=tokenizers, dataset=dataset, say=_say)


def wished(like: str | Path | None = None, recipe: str | Path | None = None, **given: Any) -> "Wishes":
    """How a folder is to be made: as another one was, or as the recipe says, with what is given changed.

    given  template and concept_token of the recipe; drawn, count, shares and seed; None is not given

    Raises SettingsError for what cannot be.
    """
    from dataclasses import replace

    from lace_lora import claim_folder, patent_recipe

    if like is not None and recipe is not None:
        raise SettingsError("--like brings a recipe of its own. Give one of --like and --recipe.")
    wishes = claim_folder.wishes_of(like) if like is not None else claim_folder.Wishes(patent_recipe.read(recipe))
    words = {name: given.pop(name, None) for name in ("template", "concept_token")}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(wishes, recipe=wishes.recipe.changed(**words), **changes)


def described(made: "Made") -> str:
    """What became of the rows, why some were set aside, and which commands go on from here."""
    lines = [repr(made)]
    if made.faults:
        kinds = Counter(fault.kind for fault in made.faults)
        lines.append(f"set aside   {', '.join(f'{count} × {kind}' for kind, count in kinds.most_common())}")
        lines += [f"  {fault}" for fault in made.faults[:NAMED]]
        lines += [f"  and {len(made.faults) - NAMED} more, all in faults.csv"] if len(made.faults) > NAMED else []
    settings = made.folder / "patent.yaml"
    if made.drawings:
        lines.append(f"Next: lace-lora train --config {settings}, then generate, evaluate and report in the same way.")
    else:
        lines.append("There is no drawing to learn from: name some in the column reference_path.")
    return "\n".join(lines)


# -- inside --


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"--shares is {text!r}; give three numbers such as 0.8,0.1,0.1.") from error


def _say(line: str) -> None:
    print(line, flush=True)
