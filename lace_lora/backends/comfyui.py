"""ComfyUI as a place to draw and train, on this machine or another one: what it has, what it lacks, and its answers.

The LoRA is put into the server's folder output/loras, from which its LoraLoader reads too; core ComfyUI takes no file
into models/loras. A design is queued under a number that is kept first, so that after a cut the same one is followed.
"""

import hashlib
import io
import json
import re
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from lace_lora import checkpoint, workflow
from lace_lora.adapter import Adapter
from lace_lora.backends import Drawing, Drawn, Place, Say, comfy_server, records
from lace_lora.backends.comfy_server import Server
from lace_lora.backends.comfy_training import cancel, train
from lace_lora.config import Config
from lace_lora.errors import BackendError, SettingsError
from lace_lora.families.layouts import FAMILIES
from lace_lora.file_names import public_name
from lace_lora.run_folder import RunFolder
from lace_lora.sheet import Generation
from lace_lora.wanted import Models

AHEAD = 2  # designs in the server's queue: one is drawn while the next one waits, and others get their turn
NEEDED = ("CheckpointLoaderSimple", "CLIPTextEncode", "LoraLoader", "KSampler", "VAEDecode", "PreviewImage")
FOR_REFINER, FOR_V = ("KSamplerAdvanced",), ("ModelSamplingDiscrete",)
# Settings that core ComfyUI has no node for: how they must stand, and in which words the others are refused.
PLAIN: dict[str, Any] = {"repeat": "none", "start_picture": None, "guidance_until": 1.0, "vae_model": None}


def models(config: Config, lora: Adapter, say: Say) -> Models:
    """The checkpoints of the server that fit the settings and the LoRA.

    Raises SettingsError for what ComfyUI cannot draw or does not have, with what it has; BackendError where it is away.
    """
    other = [f"{name} {getattr(config, name)}" for name, plain in PLAIN.items() if getattr(config, name) != plain]
    other += ["vary_by picture"] if config.vary and config.vary_by == "picture" else []
    if other:
        raise SettingsError(f"ComfyUI has no nodes of its own for {', '.join(other)}. Take it out, or draw with "
                            "backend local.")  # fmt: skip
    if lora.facts.family != "sdxl":
        kind = FAMILIES.get(lora.facts.family, lora.facts.family)
        raise SettingsError(f"This LoRA is for {kind}; backend comfyui draws with SDXL alone. Draw with what trained "
                            "it, or on ComfyUI's page with the workflow that lace-lora package makes.")  # fmt: skip
    server, version = comfy_server.connect(config.backend_url, say)
    info = comfy_server.node_info(server)
    needed = [*NEEDED, *(FOR_REFINER if config.refine != "none" else ()), *(FOR_V if _predicts_v(lora) else ())]
    lacking = [kind for kind in needed if kind not in info]
    if lacking:
        raise BackendError(f"{server.name} (version {version}) lacks the nodes {', '.join(lacking)}. Update it.")
    there = comfy_server.choices(info, "CheckpointLoaderSimple", "ckpt_name")
    asked = [config.pretrained_model] if "pretrained_model" in config.given else []
    base = comfy_server.chosen(there, [*asked, lora.facts.base_model, config.pretrained_model])
    if base is None:
        raise SettingsError(_lacks("pretrained_model", public_name(config.pretrained_model), there, server))
    refiner = comfy_server.chosen(there, [config.refiner_model]) if config.refine != "none" else ""
    if refiner is None:
        raise SettingsError(_lacks("refiner_model", public_name(config.refiner_model), there, server)
                            + " Or set refine none.")  # fmt: skip
    say(f"drawing   by {server.name} (version {version}), with {' and '.join(filter(None, (base, refiner)))}")
    return Models(base, refiner, "elsewhere")


def draw(asked: Drawing) -> Iterator[Drawn]:
    """Every missing design, in order, as the server finishes them. Raises BackendError; what is finished stays."""
    server, version = comfy_server.connect(asked.config.backend_url, asked.say)
    lora_name, embedding = put_lora(server, asked.run, asked.lora), _embedding(server, asked.lora)
    desk = _Desk(server, asked.folder.elsewhere, records.read(asked.folder.elsewhere).get("prompts", {}))
    waiting, queued = deque(asked.missing), deque[tuple[Generation, workflow.Drawing]]()
    try:
        while (waiting or queued) and not asked.stop.asked:
            while waiting and len(queued) < AHEAD:
                one = waiting.popleft()
                queued.append((one, workflow.design(_design(asked, one, lora_name, embedding))))
                desk.ask(*queued[-1])
            one, drawing = queued[0]
            outputs = desk.wait_for(one, drawing, asked)
            if outputs is None:
                break
            yield _drawn(server, one, drawing, outputs, version)
            desk.forget(one)
            queued.popleft()
    finally:
        if asked.stop.asked:
            desk.take_back([one for one, _ in queued])
    if not waiting and not queued:
        records.forget(asked.folder.elsewhere)


def put_lora(server: Server, run: RunFolder, lora: Adapter) -> str:
    """The LoRA where the server's LoraLoader lists it, under a name that tells its content; returns that name.

    Raises SettingsError with the file and the folder where the server takes none over the network.
    """
    file = run.adapter_for_tools if run.adapter_for_tools.is_file() else lora.path
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', run.name)}-{checkpoint.sha256(file)[:12]}.safetensors"
    size = file.stat().st_size
    there = _listed(server, name)
    place = {"kind": "output", "subfolder": "loras"}
    if there and comfy_server.size_of(server, name, **place) in (size, None):  # None: put there by hand
        return there
    problem = ""
    try:
        server.say(f"sending   {file.name} to {server.name} ({size / 1e6:.1f} MB)")
        comfy_server.upload(server, file, name, **place)
        arrived = comfy_server.size_of(server, name, **place)
        if arrived is not None and arrived != size:
            problem = f"only {arrived:,} of {size:,} bytes arrived"
    except BackendError as error:
        problem = str(error)
    there = _listed(server, name)
    if there and not problem:
        return there
    raise SettingsError(
        f"{server.name} does not take the LoRA over the network{f' ({problem})' if problem else ''}. Copy {file} into "
        f"its folder models/loras under the name {name}, then run again."
    )


# -- inside --


def _lacks(setting: str, name: str, there: Sequence[str], server: Server) -> str:
    listed = ", ".join(there[:12]) + (" …" if len(there) > 12 else "")
    has = f"It has: {listed}. Set {setting} to one of them" if there else "It has none at all"
    return f"{server.name} has no checkpoint that {setting} {name} means. {has}, or put the file into its folder " \
           "models/checkpoints."  # fmt: skip


def _listed(server: Server, name: str) -> str | None:
    """The entry of the LoraLoader's list whose file has that name, wherever it lies."""
    names = comfy_server.choices(comfy_server.node_info(server, "LoraLoader"), "LoraLoader", "lora_name")
    return next((one for one in names if PurePosixPath(one.replace("\\", "/")).name == name), None)


def _embedding(server: Server, lora: Adapter) -> str | None:
    """The name of a learnt concept token's file there. Raises SettingsError: core ComfyUI takes no such upload."""
    if not lora.facts.learns_token:
        return None
    file = lora.path.with_name("concept_token.safetensors")
    name = f"lace-{checkpoint.sha256(file)[:12]}"
    there = comfy_server.embeddings(server)
    if name in there:
        return name
    raise SettingsError(
        f"This LoRA has learnt a word of its own, {lora.facts.concept_token}, and {server.name} does not have it. Copy "
        f"{file} into its folder models/embeddings under the name {name}.safetensors, then run again."
    )


def _design(asked: Drawing, one: Generation, lora_name: str, embedding: str | None) -> workflow.Design:
    return workflow.Design(
        checkpoint=asked.models.base,
        prompt=one.prompt,
        seed=one.seed,
        width=one.width,
        height=one.height,
        negative_prompt=one.negative_prompt,
        num_inference_steps=one.num_inference_steps,
        guidance_scale=one.guidance_scale,
        scheduler=one.scheduler,
        lora_name=lora_name,
        lora_scale=one.lora_scale,
        text_scale=one.lora_scale if asked.lora.facts.train_text_encoder else 0.0,
        refiner=asked.models.refiner or None,
        refiner_prompt=one.refiner_prompt,
        refine=one.refine,
        refiner_start=one.refiner_start or 0.85,
        refine_strength=one.refine_strength or 0.3,
        embedding=embedding,
        concept_token=one.concept_token,
        predicts_v=_predicts_v(asked.lora),
    )


def _predicts_v(lora: Adapter) -> bool:
    return lora.facts.prediction_type == "v_prediction"


@dataclass
class _Desk:
    """What the server was asked for: the number of each design there, by its number in the sheet."""

    server: Server
    file: Path
    numbers: dict[str, Any]
    adopted: set[int] = field(default_factory=set)  # asked for in an earlier session

    def ask(self, one: Generation, drawing: workflow.Drawing, *, anew: bool = False) -> None:
        """Have a design in the server's queue: the one of before, if it was the same, else a new one.

        Its number is kept first: a cut between the two must not draw it twice.
        """
        digest = hashlib.sha256(json.dumps(drawing.workflow, sort_keys=True).encode()).hexdigest()
        same = {"digest": digest, "url": self.server.url}
        before = self.numbers.get(str(one.index), {})
        if not anew and before.get("id") and all(before.get(name) == same[name] for name in same):
            self.adopted.add(one.index)
            return
        kept = self._keep(one, same | {"id": str(uuid.uuid4())})
        try:
            number = comfy_server.queue(self.server, drawing.workflow, kept["id"])
        except comfy_server.Refused:
            self.forget(one)  # there is nothing to be followed
            raise
        if number != kept["id"]:  # an older server, which gives numbers of its own
            self._keep(one, kept | {"id": number})

    def wait_for(self, one: Generation, drawing: workflow.Drawing, asked: Drawing) -> Mapping[str, Any] | None:
        """What came of a design, None when stopped; one that the server forgot is asked for once more."""
        for is_second in (False, True):
            try:
                number = self.numbers[str(one.index)]["id"]
                return comfy_server.follow(
                    self.server, number, lambda: asked.stop.asked, partial(_tell, asked.say, one)
                )
            except comfy_server.Failed:
                self.forget(one)
                if one.index not in self.adopted or is_second:
                    raise
                self.ask(one, drawing, anew=True)  # it failed long ago; what was wrong may be mended
            except comfy_server.Unknown as error:
                if is_second:
                    raise BackendError(
                        f"{self.server.name} forgets what it is asked for. Is it several servers behind one address? "
                        "Set backend_url to one of them."
                    ) from error
                asked.say(f"{self.server.name} does not know design {one.index} any more; it is asked for again.")
                self.ask(one, drawing, anew=True)
        return None

    def forget(self, one: Generation) -> None:
        """Strike a design off: it is here, or it failed."""
        self.numbers.pop(str(one.index), None)
        records.keep(self.file, prompts=self.numbers)

    def take_back(self, designs: Sequence[Generation]) -> None:
        """Stop what was asked for and is not here yet."""
        numbers = [self.numbers[str(one.index)]["id"] for one in designs if str(one.index) in self.numbers]
        comfy_server.take_back(self.server, numbers)
        for one in designs:
            self.forget(one)

    def _keep(self, one: Generation, facts: dict[str, str]) -> dict[str, str]:
        self.numbers[str(one.index)] = facts
        records.keep(self.file, prompts=self.numbers)
        return facts


def _tell(say: Say, one: Generation, node: str, step: int, of: int) -> None:
    """A line at the end of each pass over the steps."""
    if of > 1 and step == of:
        say(f"design {one.index}: {of} steps made")


def _drawn(
    server: Server, one: Generation, drawing: workflow.Drawing, outputs: Mapping[str, Any], version: str
) -> Drawn:
    """The pictures of a design, fetched."""
    base, refined = (_picture(server, outputs, node) for node in (drawing.base, drawing.refined))
    if base is None or (refined is None) != (drawing.refined is None):
        raise BackendError(f"{server.name} finished design {one.index} without a picture. Look at its own messages.")
    return Drawn(replace(one, versions={**one.versions, "comfyui": version}), base, refined)


def _picture(server: Server, outputs: Mapping[str, Any], node: str | None) -> Image.Image | None:
    found = outputs.get(node, {}).get("images") if node else None
    if not found:
        return None
    try:
        with Image.open(io.BytesIO(comfy_server.fetch(server, found[0]))) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise BackendError(f"{server.name} gave back a damaged picture. {comfy_server.GO_ON}") from error


PLACE = Place(draw=draw, train=train, cancel=cancel, models=models)
