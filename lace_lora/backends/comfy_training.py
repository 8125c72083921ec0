"""A training by ComfyUI's own LoRA nodes: a fallback, for a machine on which only ComfyUI runs.

Its nodes are experimental and are named differently from version to version, so they are found by what they take and
give. What they cannot do is said before they begin.
"""

import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lace_lora.backends import Say, Trained, Training, comfy_server, dataset, records
from lace_lora.backends.comfy_server import Server
from lace_lora.config import Config
from lace_lora.errors import BackendError
from lace_lora.run_folder import RunFolder
from lace_lora.workflow import Link, Workflow

LORA = "LORA_MODEL"
CANNOT = (
    "! ComfyUI's own training keeps no checkpoints and cannot go on after a cut, holds no pictures out to tell when to "
    "stop, learns every picture as a square cut from its middle, and knows no warmup, no min-SNR and no concept token "
    "of its own. Where a GPU is yours, backend local learns better."
)


@dataclass(frozen=True)
class Nodes:
    """The classes of a server's training nodes.

    loader   takes a folder of pictures with captions
    encoder  makes latents and conditioning of them; None where the loader reads captions itself, and the VAE is asked
    """

    trainer: str
    saver: str
    loader: str
    encoder: str | None


def nodes_of(info: Mapping[str, Any]) -> Nodes:
    """The training nodes among all nodes of a server, by the types of what they take and give.

    Raises BackendError where there are none.
    """

    def first(*, takes: set[str], gives: list[str], named: set[str] | None = None, is_last: bool = False) -> str | None:
        for kind, node in sorted(info.items()):
            inputs = _inputs(node)
            types = {_type(one) for one in inputs.values()}
            fits = takes <= types and list(node.get("output", []))[: len(gives)] == gives
            if fits and (named or set()) <= set(inputs) and (not is_last or node.get("output_node")):
                return kind
        return None

    wanted = {"MODEL", "LATENT", "CONDITIONING"}
    trainers = [kind for kind, node in sorted(info.items()) if LORA in node.get("output", [])]
    trainer = next((one for one in trainers if wanted <= {_type(each) for each in _inputs(info[one]).values()}), None)
    saver = first(takes={LORA}, gives=[], is_last=True)
    reader = first(takes={"CLIP"}, gives=["IMAGE", "CONDITIONING"], named={"folder"})
    loader = reader or first(takes=set(), gives=["IMAGE", "STRING"], named={"folder"})
    encoder = None if reader else first(takes={"IMAGE", "VAE", "CLIP", "STRING"}, gives=["LATENT", "CONDITIONING"])
    if not (trainer and saver and loader and (reader or encoder)):
        raise BackendError(
            "This ComfyUI has no nodes that train a LoRA from a folder of pictures with captions. Update it, or train "
            "with backend local or replicate."
        )
    return Nodes(trainer, saver, loader, encoder)


def workflow(
    info: Mapping[str, Any], nodes: Nodes, checkpoint: str, folder: str, config: Config, prefix: str
) -> Workflow:
    """Checkpoint and pictures into the trainer, and what it learnt into the file that begins with `prefix`.

    folder  of the server's input, with pictures of one size and their captions
    """
    found: Workflow = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}}}
    model, clip, vae = (["1", output] for output in range(3))

    def add(kind: str, links: Mapping[str, Link], **chosen: Any) -> str:
        number = str(len(found) + 1)
        found[number] = {"class_type": kind, "inputs": _filled(info[kind], links, chosen)}
        return number

    side = int(config.resolution)
    loaded = add(nodes.loader, {"CLIP": clip}, folder=folder, width=side, height=side)
    if nodes.encoder:
        encoded = add(nodes.encoder, {"IMAGE": [loaded, 0], "VAE": vae, "CLIP": clip, "STRING": [loaded, 1]})
        latents, told = [encoded, 0], [encoded, 1]
    else:
        latents, told = [add("VAEEncode", {"IMAGE": [loaded, 0], "VAE": vae}), 0], [loaded, 1]
    trained = add(
        nodes.trainer,
        {"MODEL": model, "LATENT": latents, "CONDITIONING": told},
        batch_size=int(config.train_batch_size), steps=int(config.max_train_steps), rank=config.rank, seed=config.seed,
        grad_accumulation_steps=int(config.gradient_accumulation_steps), learning_rate=config.learning_rate,
        optimizer="AdamW", loss_function="Huber" if config.loss == "huber" else "MSE", algorithm="LoRA",
        lora_dtype="fp32", existing_lora="[None]",
        gradient_checkpointing=config.gradient_checkpointing != "none",
    )  # fmt: skip
    output = list(info[nodes.trainer]["output"])
    add(nodes.saver, {LORA: [trained, output.index(LORA)]}, prefix=prefix, filename_prefix=prefix)
    return found


def train(asked: Training) -> Trained | None:
    """Have the server train, and fetch the LoRA; None when stopped.

    Called again, it follows the training that was begun. Raises BackendError; a training that failed begins anew.
    """
    server, version = comfy_server.connect(asked.config.backend_url, asked.say)
    info, record = comfy_server.node_info(server), asked.folder.elsewhere
    kept = records.read(record)
    if kept.get("url") != server.url or "id" not in kept:
        asked.say(CANNOT)
        nodes = nodes_of(info)
        there = comfy_server.choices(info, "CheckpointLoaderSimple", "ckpt_name")
        base = comfy_server.chosen(there, [asked.config.pretrained_model])
        if base is None:
            raise BackendError(f"{server.name} has no checkpoint that pretrained_model {asked.config.pretrained_model} "
                               f"means. It has: {', '.join(there) or 'none'}.")  # fmt: skip
        name = f"lace-{uuid.uuid4().hex[:12]}"
        _send(server, asked, name)
        built = workflow(comfy_server.node_info(server), nodes, base, name, asked.config, f"loras/{name}")
        kept = records.keep(record, id=str(uuid.uuid4()), url=server.url, name=name)
        try:
            number = comfy_server.queue(server, built, kept["id"])
        except comfy_server.Refused:
            records.forget(record)  # there is nothing to be followed
            raise
        kept = records.keep(record, id=number)
    else:
        asked.say(f"following the training that was begun at {server.name}")
    total = int(asked.config.max_train_steps)
    asked.record.tell("elsewhere", step=0, total=total)
    if _followed(server, asked, kept) is None:
        return None
    return Trained(_fetched(server, kept["name"]), f"ComfyUI {version}")


def cancel(folder: RunFolder, say: Say) -> str:
    """Stop the training that is under way for a run; returns what became of it."""
    kept = records.read(folder.elsewhere)
    server, _ = comfy_server.connect(str(kept["url"]), say)
    comfy_server.take_back(server, [str(kept["id"])])
    records.forget(folder.elsewhere)
    return f"The training of {folder.name} at {server.name} is stopped, and what it learnt is lost."


# -- inside --


def _followed(server: Server, asked: Training, kept: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What became of the training; None when stopped, and then it is stopped there too."""

    def told(node: str, step: int, of: int) -> None:
        if of == int(asked.config.max_train_steps):  # of the trainer, where it tells
            asked.record.tell("elsewhere", step=step, total=of)

    try:
        outputs = comfy_server.follow(server, kept["id"], lambda: asked.stop.asked, told)
    except comfy_server.Failed:
        records.forget(asked.folder.elsewhere)
        raise
    except comfy_server.Unknown as error:
        records.forget(asked.folder.elsewhere)
        raise BackendError(f"{server.name} was started anew, and the training with it is lost. Run again to begin it "
                           "once more.") from error  # fmt: skip
    if outputs is None:
        comfy_server.take_back(server, [kept["id"]])
        records.forget(asked.folder.elsewhere)
        asked.say("! The training at ComfyUI is stopped; it cannot go on, and begins anew when it is run again.")
    return outputs


def _send(server: Server, asked: Training, name: str) -> None:
    """Every picture and its caption into a folder of the server's input."""
    asked.say(f"sending   {len(asked.examples)} pictures to {server.name}")
    with tempfile.TemporaryDirectory() as scratch:
        for stem, picture, caption in dataset.pictures(asked.examples, int(asked.config.resolution)):
            for ending, data in ((".jpg", picture), (".txt", caption.encode("utf-8"))):
                file = Path(scratch) / f"{stem}{ending}"
                file.write_bytes(data)
                comfy_server.upload(server, file, file.name, kind="input", subfolder=name)


def _fetched(server: Server, name: str) -> bytes:
    """The file that the saver wrote, under a name of its own beginning."""
    listed = comfy_server.choices(comfy_server.node_info(server, "LoraLoader"), "LoraLoader", "lora_name")
    files = [PurePosixPath(one.replace("\\", "/")).name for one in listed]
    file = next((one for one in sorted(files, reverse=True) if one.startswith(name)), None)
    if file is None:
        raise BackendError(f"{server.name} trained, and does not list the LoRA {name}. Look into its folder "
                           "output/loras.")  # fmt: skip
    data = comfy_server.fetch(server, {"filename": file, "subfolder": "loras", "type": "output"})
    size = comfy_server.size_of(server, file, kind="output", subfolder="loras")
    if size is not None and size != len(data):
        raise BackendError(f"Only {len(data):,} of {size:,} bytes of the LoRA arrived. {comfy_server.GO_ON}")
    return data


def _inputs(node: Mapping[str, Any]) -> dict[str, Any]:
    given = node.get("input") or {}
    return {**(given.get("required") or {}), **(given.get("optional") or {})}


def _type(declared: Any) -> str:
    """A type's name; a list of choices is COMBO, as newer servers write it."""
    return declared[0] if isinstance(declared[0], str) else "COMBO"


def _filled(node: Mapping[str, Any], links: Mapping[str, Link], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A node's inputs: links by their type, what was chosen by name, and of what it demands beside that its default."""
    required = (node.get("input") or {}).get("required") or {}
    filled: dict[str, Any] = {}
    for name, declared in _inputs(node).items():
        kind = _type(declared)
        more = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
        if name in chosen and kind not in links:
            filled[name] = chosen[name]
        elif kind in links:
            filled[name] = links[kind]
        elif name in required or kind == "COMBO":
            options = declared[0] if isinstance(declared[0], list) else more.get("options") or [None]
            filled[name] = more.get("default", options[0] if kind == "COMBO" and options else None)
    return filled
