"""An order carried out: every batch through all stages, each stage loaded once for a group of them.

What a stage leaves of a batch is kept on the disk, so a cut-off loses at most one batch of one stage.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from lace_lora import between_stages, counting, repeats, sheet, stages, stopping
from lace_lora.batches import Batch, texts_of
from lace_lora.between_stages import Pictures
from lace_lora.errors import RunError
from lace_lora.figures import Watch
from lace_lora.mishaps import OutOfMemory
from lace_lora.order import Order
from lace_lora.sheet import Generation

# Pictures that pass through all stages together. Each model is loaded once a group: once in all for any usual sheet,
# and for a sheet of 100,000 the encoded prompts and latents still fit in memory and on the disk.
GROUP = 240
DRAWN, REFINED = "drawn", "refined"  # stages that leave latents

Say = Callable[[str], None]
T = TypeVar("T")


def groups(order: Order, finished: Collection[int]) -> Iterator[list[Pictures]]:
    """The batches with something missing, as many at a time as make GROUP pictures."""
    waiting = [batch for batch in order.batches if not all(index in finished for index in batch)]
    group: list[Pictures] = []
    for batch in waiting:
        if group and sum(map(len, group)) + len(batch) > GROUP:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def make(
    order: Order,
    group: Sequence[Pictures],
    finished: Collection[int],
    stop: stopping.Stop,
    say: Say,
    watch: Watch | None = None,
) -> Iterator[Generation]:
    """One group of batches through all stages: encode, draw, refine, decode; what a stage left before is taken up.

    watch  notes what the stages take
    """
    watch = watch or Watch()
    to_draw = _waiting(order, group, DRAWN)
    _encode_start(order, to_draw)
    to_refine = _waiting(order, group, REFINED) if order.refining else []
    told = [order.batch(batch) for batch in to_draw] + [order.batch(batch, for_refiner=True) for batch in to_refine]
    # Where the adapter changed how prompts are read, the base's are read with it and the refiner's without.
    ways = [told] if not order.lora.changes_text else [told[: len(to_draw)], told[len(to_draw) :]]
    words = [_read(order, batches, place == 0) for place, batches in enumerate(ways) if batches or place == 0]
    if to_draw:
        _draw(order, to_draw, words[0], stop, say, watch)
    if to_refine and not stop.asked:  # in the pieces in which they are by now
        _refine(order, _waiting(order, group, REFINED), words[-1], stop, say, watch)
    del words
    if not stop.asked:
        yield from _decode(order, group, finished, stop, say, watch)
    if not stop.asked:
        for stage in (DRAWN, REFINED):
            for batch in group:
                between_stages.forget(order.folder, order.kept_as(stage), batch)
        order.workplace.deliver()


def _waiting(order: Order, group: Iterable[Pictures], stage: str) -> list[Pictures]:
    """The batches that a stage has still to do, in the pieces in which it computes them."""
    halvings = sheet.halvings(order.folder)
    batches = between_stages.in_pieces(group, halvings, DRAWN)
    if stage == REFINED:
        batches = between_stages.in_pieces(batches, halvings, REFINED)
    return [batch for batch in batches if not between_stages.has_all(order.folder, order.kept_as(stage), batch)]


def _encode_start(order: Order, batches: Iterable[Pictures]) -> None:
    """The picture to begin with, at each size that is drawn."""
    first = [order.pictures[batch[0]] for batch in batches]
    for width, height in dict.fromkeys((one.width, one.height) for one in first):
        if order.start is not None and (width, height) not in order.starts:
            order.starts[width, height] = stages.encode_start(
                order.start, order.base_model, width, height, device=order.device, vae_model=order.vae_model,
                repeat=order.sampling.repeat, shelf=order.shelf,
            )  # fmt: skip


def _read(order: Order, batches: list[Batch], with_lora: bool) -> stages.Words:
    """Prompts and negative prompts of some batches, encoded; nothing is loaded for none."""
    if not batches:
        return {}
    lora, texts = order.lora if with_lora and order.lora.changes_text else None, texts_of(batches)
    return stages.encode_prompts(
        order.base_model,
        texts,
        lora=lora,
        lora_scale=order.lora_scale,
        dtype=order.dtype,
        device=order.device,
        shelf=order.shelf,
    )


def _draw(
    order: Order, batches: Sequence[Pictures], words: stages.Words, stop: stopping.Stop, say: Say, watch: Watch
) -> None:
    """Base UNet with the LoRA: every batch once, its latents kept on the disk."""
    tell = counting.lines(say, "drawn", sum(map(len, batches)))

    def drawing(waiting: Sequence[Pictures]) -> Iterator[stages.Drawn]:
        return stages.denoise(
            order.base_model, watch.begins(stop.until(order.batch(batch) for batch in waiting)), words, order.sampling,
            refining=order.refining, lora=order.lora, lora_scale=order.lora_scale, dtype=order.dtype,
            device=order.device, shelf=order.shelf, four_bits=order.four_bits,
        )  # fmt: skip

    for batch, drawn in _halving(order, DRAWN, batches, drawing, say):
        watch.made("generate", len(batch), len(batch))
        both = {"finished": drawn.finished_BCHW, "handed_over": drawn.handed_over_BCHW}
        for row, index in enumerate(batch):
            latents = {name: latents_BCHW[row] for name, latents_BCHW in both.items() if latents_BCHW is not None}
            between_stages.keep(order.folder, order.kept_as(DRAWN), index, latents)
        _hand_over(order, DRAWN, batch)
        tell(len(batch))


def _refine(
    order: Order, batches: Sequence[Pictures], words: stages.Words, stop: stopping.Stop, say: Say, watch: Watch
) -> None:
    """Refiner UNet: every batch once, its latents kept on the disk."""
    refining = order.refining
    assert refining is not None
    begin_with = "handed_over" if refining.mode == "ensemble" else "finished"
    tell = counting.lines(say, "refined", sum(map(len, batches)))

    def touching_up(waiting: Sequence[Pictures]) -> Iterator[Tensor]:
        work = (
            (
                order.batch(batch, for_refiner=True),
                torch.stack([_left(order, DRAWN, index)[begin_with] for index in batch]),
            )
            for batch in stop.until(waiting)
        )
        return stages.refine(
            order.refiner_model, watch.begins(work), words, order.sampling, refining, base_model=order.base_model,
            dtype=order.dtype, device=order.device, shelf=order.shelf,
        )  # fmt: skip

    for batch, finished_BCHW in _halving(order, REFINED, batches, touching_up, say):
        watch.made("refine", len(batch), len(batch))
        for row, index in enumerate(batch):
            between_stages.keep(order.folder, order.kept_as(REFINED), index, {"finished": finished_BCHW[row]})
        _hand_over(order, REFINED, batch)
        tell(len(batch))


def _halving(
    order: Order, stage: str, batches: Sequence[Pictures], begin: Callable[[Sequence[Pictures]], Iterator[T]], say: Say
) -> Iterator[tuple[Pictures, T]]:
    """What a stage makes of each batch. Where memory runs out, the waiting batches are halved and the stage goes on.

    begin  starts the stage for the batches that wait

    The pieces are recorded: a picture's last bits depend on what it is computed with. Raises OutOfMemory where one
    picture alone does not fit.
    """
    waiting = list(batches)
    while waiting:
        try:
            # The stage first: so it comes to its end, and gives its model back.
            for made, batch in zip(begin(list(waiting)), list(waiting), strict=False):
                yield batch, made
                waiting.remove(batch)
            return  # all are made, or somebody asked to stop
        except OutOfMemory:
            longest = max(map(len, waiting))
            if longest == 1:
                raise
            halvings = [between_stages.Halving(stage, batch, longest // 2) for batch in waiting]
            halvings = [one for one in halvings if len(one.batch) > one.at_most]
            between_stages.record(order.folder, halvings, order.shard)
            order.workplace.hand_over([order.folder.halved(order.shard)])
            waiting = between_stages.in_pieces(waiting, halvings, stage)
            say(f"memory    is short: {longest // 2} at once instead of {longest}")


def _decode(
    order: Order, group: Iterable[Pictures], finished: Collection[int], stop: stopping.Stop, say: Say, watch: Watch
) -> Iterator[Generation]:
    """VAE: both pictures of every one that is missing, written as they come."""
    missing = [index for batch in group for index in batch if index not in finished]

    def work() -> Iterator[tuple[str, Tensor]]:
        for index in stop.until(missing):
            yield order.pictures[index].base.name, _left(order, DRAWN, index)["finished"]
            if order.refining is not None:
                yield order.pictures[index].path.name, _left(order, REFINED, index)["finished"]

    images = stages.decode(
        order.base_model, watch.begins(work()), device=order.device, dtype=order.dtype, vae_model=order.vae_model,
        repeat=order.sampling.repeat, shelf=order.shelf, say=say,
    )  # fmt: skip
    own = sum(map(len, order.batches))
    tell = counting.lines(say, "picture", own, own - sum(index not in finished for index in chain(*order.batches)))
    for index in missing:
        base = next(images, None)
        if base is None:  # somebody asked to stop
            return
        watch.made("decode", 1, 1)
        refined = None
        if order.refining is not None:
            refined = next(images)
            watch.made("decode", 1, 0)  # of the same design
        repeat = order.sampling.repeat
        seam = None if repeat == "none" else round(repeats.seam_score(refined or base, repeat), 2)
        done = replace(order.pictures[index], seam=seam)
        sheet.add(order.folder, done, base, refined, order.shard)
        order.workplace.hand_over([*done.files(), order.folder.rows(order.shard)])
        tell(1)
        yield done


def _hand_over(order: Order, stage: str, batch: Pictures) -> None:
    """What a stage left of a batch goes to Drive too: another machine may go on with it."""
    order.workplace.hand_over(between_stages.place(order.folder, order.kept_as(stage), index) for index in batch)


def _left(order: Order, stage: str, index: int) -> dict[str, Tensor]:
    """What a stage left of a picture, which was there a moment ago."""
    left = between_stages.kept(order.folder, order.kept_as(stage), index)
    if left is None:
        raise RunError(f"What was {stage} of picture {index} is gone from {order.folder.latents}. Run the same again.")
    return left
