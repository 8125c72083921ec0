"""A sheet of designs that a place elsewhere draws: the same order, folder, files and rows as one drawn here.

What decides the pictures comes from the adapter and the settings; the models are the place's own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from lace_lora import landing, sheet, stopping, wanted
from lace_lora import order as orders
from lace_lora.backends import Drawing, Place, Say
from lace_lora.config import Config
from lace_lora.errors import SettingsError
from lace_lora.finishing import Finishing
from lace_lora.order import Order
from lace_lora.run_folder import RunFolder
from lace_lora.sheet import Generation
from lace_lora.shelf import Shelf

SIDE_PX = 1024  # of a design, where neither the settings nor the adapter name a size: SDXL's own
# Raised by hand when the same request would give other pictures than an earlier version of this code had drawn.
DRAWING = 1


def prepare(config: Config, place: Place, say: Say) -> Order:
    """What is to be drawn there; afterwards the request is on the disk.

    Raises SettingsError for what that place cannot draw, AdapterError where nothing was trained yet, BackendError where
    it does not answer.
    """
    if place.draw is None:
        raise SettingsError(f"backend {config.backend} draws no designs. Set backend to local or comfyui.")
    shard, run = orders.shard_of(config), RunFolder.of(config)
    lora = landing.lora_of(run)
    if not (config.width and config.height) and not lora.facts.resolution:
        config = config.with_preset({"width": config.width or SIDE_PX, "height": config.height or SIDE_PX})
    models = place.models(config, lora, say)
    config = config if models.refiner else config.with_preset({"refine": "none"})
    if not lora.is_complete:
        say(f"! This adapter's training was stopped at step {lora.facts.step}; lace-lora train goes on with it.")
    pictures, before = wanted.pictures(config, run, lora, models, say)
    wanted.tell_changes(config, before, pictures, say)
    for size in dict.fromkeys((one.width, one.height) for one in pictures):
        Finishing.of(config).check(config.repeat, size)
    told = [f"drawing {DRAWING} by {config.backend}", models.base, models.refiner]
    at_once = {(one.width, one.height): 1 for one in pictures}
    return Order(
        run=run,
        base_model=models.base,
        refiner_model=models.refiner,
        vae_model=None,
        lora=lora,
        lora_scale=config.lora_scale,
        sampling=orders.sampling_of(config),
        refining=None,
        dtype=torch.float32,
        device="cpu",
        placed=orders.placed(config, run, pictures, told, at_once, shard, say),
        at_once=at_once,
        shard=shard,
        shelf=Shelf(0),
        finishing=Finishing.of(config),
        packs=config.zip,
        asked_name=config.sheet_name,
    )


def maker(
    config: Config, place: Place, say: Say
) -> Callable[[Order, Mapping[int, Generation], stopping.Stop], Iterator[Generation]]:
    """The function that has an order's missing designs drawn there, each written as soon as it comes."""

    def make(order: Order, finished: Mapping[int, Generation], stop: stopping.Stop) -> Iterator[Generation]:
        missing = [order.pictures[index] for index in sorted(order.own) if index not in finished]
        if not missing or place.draw is None:
            return
        models = wanted.Models(order.base_model, order.refiner_model, missing[0].precision)
        for drawn in place.draw(Drawing(config, order.run, order.folder, order.lora, models, missing, stop, say)):
            one = _as_it_came(drawn.design, drawn.base.size)
            sheet.add(order.folder, one, drawn.base, drawn.refined if one.refined else None, order.shard)
            order.workplace.hand_over([*one.files(), order.folder.rows(order.shard)])
            yield one
        order.workplace.deliver()

    return make


def _as_it_came(one: Generation, size: tuple[int, int]) -> Generation:
    """The design with the size that it has, where a place draws in sizes of its own."""
    return one if (one.width, one.height) == size else replace(one, width=size[0], height=size[1])
