"""Replicate as a place to train and draw: what it costs is said and must be agreed to before anything is begun.

A training goes on there whatever becomes of this machine. Its number is kept in the run's elsewhere.json: called again,
it is followed, and not begun and paid for a second time.
"""

import io
import math
import re
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import checkpoint, estimate, throughput
from lace_lora.adapter import Adapter
from lace_lora.backends import (
    Drawing,
    Drawn,
    Place,
    Say,
    Trained,
    Training,
    dataset,
    records,
    replicate_client,
    trainers,
)
from lace_lora.backends.packages import needed
from lace_lora.backends.replicate_client import Account, call
from lace_lora.config import Config
from lace_lora.counting import counted
from lace_lora.errors import BackendError, LaceError, SettingsError
from lace_lora.families.layouts import FAMILIES
from lace_lora.presets import Settled
from lace_lora.run_folder import RunFolder
from lace_lora.sheet import Generation
from lace_lora.wanted import Models

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 2.0, 30.0
PARTS_OF_A_WAIT = 1.0  # seconds, after which a wait looks whether it was stopped
AHEAD = 4  # designs that are drawn at a time
ENDED = ("failed", "canceled")
LARGEST_LORA_BYTES = 4_000_000_000
_NAME = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*(:[0-9a-f]+)?")
# Settings that a version at Replicate has no input for.
PLAIN: dict[str, Any] = {"repeat": "none", "start_picture": None, "guidance_until": 1.0}


def train(asked: Training) -> Trained | None:
    """Send the pictures, begin the training where it is not begun, follow it, and bring what was learnt; None when
    stopped: it then goes on there.

    Raises SettingsError where the cost is not agreed to or the key is missing, BackendError where it failed.
    """
    config, record, row = asked.config, asked.folder.elsewhere, trainers.table()[asked.config.backend_trainer]
    kept = records.read(record)
    if "id" not in kept:
        destination = _destination(config)
        _agree(config, training_cost(config, len(asked.examples)), f"this training by {row['model']}", asked.say)
    account = replicate_client.connect(asked.say)
    if "id" not in kept:
        kept = _begun(account, asked, row, destination, kept)
    asked.say(f"following training {kept['id']} at Replicate")
    done = _followed(account, asked, str(kept["id"]))
    if done is None:
        asked.say("! Stopped following. The training goes on at Replicate and costs money: run the same again to "
                  "follow it, or stop it with `lace-lora cancel`.")  # fmt: skip
        return None
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "trained_model.tar"
        download_weights(account, done, file)
        data = lora_in(file)
    version = done.output.get("version") if isinstance(done.output, dict) else None
    return Trained(data, str(version or f"{kept['destination']} at Replicate"), row["family"])


def _family(config: Config) -> str:
    return str(trainers.table()[config.backend_trainer]["family"])


def training_cost(config: Config, pictures: int) -> trainers.Cost:
    """What the training is estimated to cost: steps × seconds a step on the trainer's GPU, as the plan has them."""
    row = trainers.table()[config.backend_trainer]
    planned = estimate.plan(Settled(config, "none", "as set", {}), throughput.machine(row["gpu"]), pictures)
    return trainers.training_cost(row, planned.minutes or 0.0)


def download_weights(account: Account, job: Any, path: Path) -> str:
    """Bring what a training made to `path`; returns the sha256 (hex) of the file.

    job  a finished training of the client. Raises BackendError where it has no weights.
    """
    output = job.output
    url = output.get("weights") if isinstance(output, dict) else output
    if not isinstance(url, str):
        raise BackendError(
            f"Training {job.id} at Replicate succeeded without weights. Look at replicate.com/p/{job.id}."
        )
    return replicate_client.fetch(account, url, path)


def lora_in(file: Path) -> bytes:
    """The LoRA in what a trainer packed: a .tar with one safetensors file that is it, or that file itself.

    Raises BackendError where there is none. Nothing is unpacked to the disk.
    """
    if not tarfile.is_tarfile(file):
        return file.read_bytes()
    with tarfile.open(file) as packed:
        names = [one for one in packed.getmembers() if one.isfile() and one.name.endswith(".safetensors")]
        best = sorted(names, key=lambda one: ("lora" not in Path(one.name).name, len(one.name)))
        if not best or best[0].size > LARGEST_LORA_BYTES:
            raise BackendError("What Replicate trained holds no LoRA as a safetensors file. Choose another "
                               "backend_trainer.")  # fmt: skip
        opened = packed.extractfile(best[0])
        assert opened is not None
        return opened.read()


def cancel(folder: RunFolder, say: Say) -> str:
    """Stop the training that is under way for a run; returns what became of it."""
    number = str(records.read(folder.elsewhere)["id"])
    account = replicate_client.connect(say)
    done = call(account, "stop the training", account.client.trainings.cancel, number)
    records.forget(folder.elsewhere)
    return f"Training {number} of {folder.name} at Replicate is {done.status}; what it took until now is billed."


def models(config: Config, lora: Adapter, say: Say) -> Models:
    """The trained version that draws. Raises SettingsError for what it cannot draw, or where none is known."""
    other = [f"{name} {getattr(config, name)}" for name, plain in PLAIN.items() if getattr(config, name) != plain]
    if other:
        raise SettingsError(f"Replicate has no inputs for {', '.join(other)}. Take it out, or draw with backend local.")
    row = trainers.table()[config.backend_trainer]
    if lora.facts.family != row["family"]:
        made_for, drawn = (FAMILIES.get(one, one) for one in (lora.facts.family, row["family"]))
        raise SettingsError(f"The LoRA is for {made_for}, and backend_trainer {config.backend_trainer} for {drawn}. "
                            "Set backend_trainer to the one that trained it.")  # fmt: skip
    made_by, named = str(lora.facts.versions.get("made_by", "")), config.backend_model or ""
    version = named if ":" in named else made_by if made_by.startswith(named) and _NAME.fullmatch(made_by) else ""
    if ":" not in version:
        raise SettingsError(
            "Replicate draws with what was trained there, and this run was not. Train it with backend replicate, set "
            "backend_model to a version such as anna/my-lace:0f3c…, or draw with backend local or comfyui."
        )
    if config.refine != "none":
        say("! Replicate gives one picture a design, so nothing is refined.")
    _agree(config, trainers.drawing_cost(row, config.num_images), counted(config.num_images, "design"), say)
    replicate_client.connect(say)  # without a key no sheet is begun
    return Models(version, "", "elsewhere")


def draw(asked: Drawing) -> Iterator[Drawn]:
    """Every missing design, in order. Raises BackendError; what is finished stays."""
    account, row = replicate_client.connect(asked.say), trainers.table()[asked.config.backend_trainer]
    record = asked.folder.elsewhere
    numbers: dict[str, str] = records.read(record).get("predictions", {})
    waiting, begun = deque(asked.missing), deque[Generation]()
    api = account.client.predictions
    try:
        while (waiting or begun) and not asked.stop.asked:
            while waiting and len(begun) < AHEAD:
                one = waiting.popleft()
                if str(one.index) not in numbers:
                    given = {"version": asked.models.base.partition(":")[2], "input": trainers.drawing_inputs(row, one)}
                    made = call(account, "draw", api.create, may_repeat=False, **given)
                    numbers[str(one.index)] = made.id
                    records.keep(record, predictions=numbers)
                begun.append(one)
            done = _ended(account, asked, lambda: api.get(numbers[str(begun[0].index)]), LONGEST_LOOK_SECONDS / 6)
            if done is None:
                break
            one = begun.popleft()
            del numbers[str(one.index)]
            if done.status in ENDED:
                records.keep(record, predictions=numbers)
                raise BackendError(f"Replicate did not draw design {one.index}: {_reason(done)}. Run again to go on.")
            yield Drawn(
                replace(one, versions={**one.versions, "replicate": asked.models.base}), _picture(account, done)
            )
            records.keep(record, predictions=numbers)
    finally:
        if asked.stop.asked:
            records.keep(record, predictions=_not_stopped(account, numbers))
    if not waiting and not begun:
        records.forget(record)


# -- inside --


def _destination(config: Config) -> str:
    named = (config.backend_model or "").partition(":")[0]
    if not _NAME.fullmatch(named):
        raise SettingsError(
            "Replicate puts what it trains into a model of yours: set backend_model to your name there and a name for "
            "it, such as anna/my-lace."
        )
    return named


def _agree(config: Config, cost: trainers.Cost, what: str, say: Say) -> None:
    """Say what it costs. Raises SettingsError where that is more than max_cost_usd."""
    say(f"cost      {what} at Replicate: {cost}")
    if cost.usd > config.max_cost_usd:
        least = math.ceil(100 * cost.usd) / 100
        raise SettingsError(
            f"The estimate for {what} at Replicate is {cost}, and max_cost_usd is {config.max_cost_usd:g}. To agree, "
            f"set max_cost_usd to {least:.2f} or more; the bill may differ. Nothing was begun."
        )


def _begun(
    account: Account, asked: Training, row: Mapping[str, Any], destination: str, kept: dict[str, Any]
) -> dict[str, Any]:
    """The training, begun: pictures sent, its number kept. One that was begun just before a cut is found again."""
    config, record, client = asked.config, asked.folder.elsewhere, account.client
    if "pictures" in kept:  # the cut may have come between the beginning and the keeping of its number
        for one in call(account, "list your trainings", client.trainings.list).results:
            if (one.input or {}).get(row["pictures"]) == kept["pictures"] and one.status not in ENDED:
                return records.keep(record, id=one.id, destination=destination)
    unused = trainers.unused(row, config)
    if unused:
        asked.say(f"! {row['model']} does not know, so these change nothing: {', '.join(unused)}.")
    if "note" in row:
        asked.say(f"! {' '.join(row['note'].split())}")
    _have_model(account, destination, row["gpu"])
    found = call(account, "name its trainer", client.models.get, row["model"])
    if found.latest_version is None:
        raise BackendError(
            f"The trainer {row['model']} has no version at Replicate now. Choose another backend_trainer."
        )
    url = _sent(account, asked)
    records.keep(record, pictures=url)
    given = trainers.inputs(row, config) | {row["pictures"]: url}
    begun = call(
        account, "begin the training", client.trainings.create, may_repeat=False, model=row["model"],
        version=found.latest_version.id, input=given, destination=destination,
    )  # fmt: skip
    return records.keep(record, id=begun.id, destination=destination)


def _have_model(account: Account, destination: str, gpu: str) -> None:
    """The model into which it is trained; made, for nobody else to see, where it is not there."""
    exceptions = needed("replicate.exceptions", "replicate", "replicate")
    owner, _, name = destination.partition("/")

    def look() -> bool:
        try:
            account.client.models.get(destination)
        except exceptions.ReplicateError as error:
            if error.status != 404:
                raise
            return False
        return True

    if not call(account, "find your model", look):
        account.say(f"making your model {destination} at Replicate, which only you can see")
        hardware = f"gpu-{gpu.casefold()}"
        call(account, "make your model", account.client.models.create, owner, name, visibility="private",
             hardware=hardware)  # fmt: skip


def _sent(account: Account, asked: Training) -> str:
    """Send the pictures with their captions; returns the address under which the trainer gets them."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pictures.zip"
        dataset.write_zip(asked.examples, file)
        size = file.stat().st_size
        account.say(f"sending   {len(asked.examples)} pictures to Replicate ({size / 1e6:.1f} MB)")
        uploaded = call(account, "take the pictures", account.client.files.create, file)
        if uploaded.checksums.get("sha256") not in (None, checkpoint.sha256(file)):
            raise BackendError("The pictures did not arrive at Replicate as they were sent. Run again.")
    return str(uploaded.urls["get"])


def _followed(account: Account, asked: Training, number: str) -> Any:
    """The finished training, None when stopped. Raises BackendError where it failed."""
    total = int(asked.config.max_train_steps)
    asked.record.tell("elsewhere", step=0, total=total)

    def look() -> Any:
        found = account.client.trainings.get(number)
        steps = [int(step) for step, of in re.findall(r"(\d+)/(\d+)", (found.logs or "")[-4000:]) if int(of) == total]
        if steps and steps[-1] > asked.record.facts["step"]:
            asked.record.tell("elsewhere", step=min(steps[-1], total))
            asked.say(f"step {steps[-1]}/{total}")
        return found

    done = _ended(account, asked, look, LONGEST_LOOK_SECONDS)
    if done is not None and done.status in ENDED:
        records.forget(asked.folder.elsewhere)
        advice = "Run again to begin it anew; what it took is billed." if done.status == "failed" else ""
        raise BackendError(f"Training {number} at Replicate: {_reason(done)}. {advice}".strip())
    return done


def _ended(account: Account, asked: Drawing | Training, look: Any, longest_seconds: float) -> Any:
    """What `look` gives once it has ended, asked for with growing pauses; None when stopped."""
    pause = FIRST_LOOK_SECONDS
    while not asked.stop.asked:
        found = call(account, "say how far it is", look)
        if found.status in ("succeeded", *ENDED):
            return found
        left = pause
        while left > 0 and not asked.stop.asked:
            account.wait(min(left, PARTS_OF_A_WAIT))
            left -= PARTS_OF_A_WAIT
        pause = min(1.5 * pause, longest_seconds)
    return None


def _not_stopped(account: Account, numbers: Mapping[str, str]) -> dict[str, str]:
    """Stop designs that are under way, and return those that are paid for all the same: the next call fetches them."""
    left = {}
    for index, number in numbers.items():
        try:
            done = call(account, "stop drawing", account.client.predictions.cancel, number)
        except LaceError:
            left[index] = number
            continue
        if done.status == "succeeded":
            left[index] = number
    return left


def _reason(done: Any) -> str:
    text = " ".join(str(done.error or "").split())[:300].rstrip(".")
    return "it was stopped there" if done.status == "canceled" else f"it failed ({text or 'no reason given'})"


def _picture(account: Account, done: Any) -> Image.Image:
    output = done.output[0] if isinstance(done.output, list) and done.output else done.output
    if not isinstance(output, str):
        raise BackendError(f"Replicate finished {done.id} without a picture. Run again.")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "picture"
        replicate_client.fetch(account, output, file)
        try:
            with Image.open(io.BytesIO(file.read_bytes())) as opened:
                return opened.convert("RGB")
        except OSError as error:
            raise BackendError(f"Replicate gave back a damaged picture ({done.id}). Run again.") from error


def _gpu(config: Config) -> str:
    return str(trainers.table()[config.backend_trainer]["gpu"])


PLACE = Place(draw=draw, train=train, cancel=cancel, models=models, gpu=_gpu, family=_family)
