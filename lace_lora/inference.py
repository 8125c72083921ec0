"""Draw a sheet of new designs with a run's adapter: every picture once, refined, and the unrefined one beside it.

What decides the pictures stands in order, how an order is carried out in production, how pictures are drawn in stages,
and how they are kept in sheet.

B batch · C latent channels (4) · H,W latent cells (px/8)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from PIL import Image
from torch import Tensor

from lace_lora import adapter as adapters
from lace_lora import (
    backends,
    elsewhere,
    estimate,
    figures,
    finishing,
    four_bits,
    own_folders,
    presets,
    production,
    sheet,
    stages,
    stopping,
    wanted,
)
from lace_lora import order as orders
from lace_lora.batches import batch_size, check_size, in_batches, texts_of
from lace_lora.config import Config
from lace_lora.file_names import public_name as public_name
from lace_lora.machine import Machine
from lace_lora.order import Order
from lace_lora.run_folder import RunFolder, SheetFolder
from lace_lora.sheet import Generation as Generation
from lace_lora.shelf import Shelf

SECONDS_FOR_DRIVE = 60.0  # for which the end waits for a Drive that does not take what is finished

Say = Callable[[str], None]
Make = Callable[[Order, Mapping[int, Generation], stopping.Stop], Iterator[Generation]]


class Designs(list[Generation]):
    """The finished pictures of a sheet in order, those of other processes too.

    folder       where they lie
    is_complete  whether all that this call was to make is made; not where somebody stopped it
    owed         where Drive did not take all of them: a sentence that tells where they are and what to do; else empty
    """

    def __init__(self, made: Iterable[Generation], folder: SheetFolder, is_complete: bool, owed: str = "") -> None:
        super().__init__(made)
        self.folder = folder
        self.is_complete = is_complete
        self.owed = owed


def run(
    config: Config,
    *,
    say: Say = print,
    show: Callable[[Generation], None] | None = None,
    shelf: Shelf | None = None,
    place: backends.Place | None = None,
    stop: stopping.Stop | None = None,
    watch: figures.Watch | None = None,
) -> Designs:
    """Make the sheet that the settings ask for; called again, make what is missing of it.

    show     called with each picture as soon as its files are written
    place    who draws, in place of what the setting backend names: a function of yours (see backends.Place)
    shelf    where models stay in memory from one call to the next; without one they do only within this call
    stop     set by another thread, it ends this call after the batch in hand
    watch    counts the designs that each stage has made, while they are made
    returns  the finished pictures in order; fewer than asked for when it was stopped (Ctrl-C, the stop button,
             SIGTERM), or where other processes make the rest

    Raises AdapterError where nothing was trained yet, and ModelError, SettingsError, MachineError, RunError or
    BackendError with what to do; what is finished stays.
    """
    # What is asked for, and what of it is there already.
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settled = presets.settle(config, machine)
    if settled.banner:
        say(settled.banner)
    place = place or backends.of(settled.config.backend)
    own_shelf = Shelf.of(machine, say) if shelf is None and place is None else None
    with own_folders.answering(settled.config):
        if place is None:
            order = orders.prepare(for_drawing(settled), machine, say, shelf or own_shelf)
        else:
            order = elsewhere.prepare(settled.config, place, say)
    stop, watch, lacked = stop or stopping.Stop(), watch or figures.Watch(), False
    planned = estimate.check_drawing(_as_drawn(settled.config, order), machine) if place is None else None
    make: Make = partial(_make_here, say, watch) if place is None else elsewhere.maker(settled.config, place, say)
    with order.workplace.locked(order.shard, say):
        order.workplace.bring()
        try:
            with stopping.on_request(say, "Stopping after this batch; stop again to stop at once.", stop=stop):
                lacked = _made(order, stop, say, show, make)
        except KeyboardInterrupt:  # the second request, or one where Python delivers no signals
            stop.asked = True
            say("Stopped at once; the batch in hand is lost.")
        finally:
            if own_shelf is not None:
                own_shelf.give_back()
        is_whole = _ended(order, stop, lacked, say)
        if planned is not None:
            sizes = {(one.width, one.height) for one in order.pictures}
            figures.keep_drawing(planned, watch, order.base_model, sizes)
        return _delivered(order, is_whole, stop, say)


def for_drawing(settled: presets.Settled) -> Config:
    """The settled settings, but a preset's quantization is open again: it was chosen for training."""
    return settled.config.with_preset({"quantization": settled.draws_in})


def as_planned(config: Config, *, say: Say = print) -> Config:
    """The settings given with the quantization that a sheet of them is drawn in: what it needs can be installed.

    Where it is left open it is decided as drawing decides it, so models that are not here are fetched. A place
    elsewhere has a base of its own: none. Draw with the settings themselves.

    Raises what `run` raises of settings, models and adapters.
    """
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settings = for_drawing(presets.settle(config, machine))
    quantization: str = settings.quantization
    if backends.of(settings.backend) is not None:
        quantization = "none"
    elif quantization == "auto":
        with own_folders.answering(settings):
            for line in orders.fetch_notices(settings, adapters.load(RunFolder.of(settings).root)):
                say(line)
            quantization = orders.asked(settings, machine, lambda line: None).based.quantization
    return config.with_preset({"quantization": quantization})


def _as_drawn(config: Config, order: Order) -> Config:
    """The settings with base model, rank and largest size of the order: they may be the LoRA's, not the config's."""
    drawn = {"refiner_model": order.refiner_model, "quantization": order.quantization}
    refine = config.refine if order.refining else "none"
    config = orders.as_drawn(config, order.lora, order.base_model, orders.largest(order.pictures))
    return config.with_preset(drawn | {"refine": refine})


def _made(order: Order, stop: stopping.Stop, say: Say, show: Callable[[Generation], None] | None, make: Make) -> bool:
    """All that this process is to make; returns whether there was anything to make in the sheet."""
    sheet.mend(order.folder, order.shard)
    finished = sheet.read_finished(order.folder, order.pictures)
    lacked = len(finished) < len(order.pictures)
    finished |= _taken_over(order, finished, say, show)
    missing = sum(index not in finished for index in order.own)
    if missing and order.four_bits:
        four_bits.check_package(begun="sheet")
    if lacked:  # the page of a run that was stopped, which must not be taken for that of the whole sheet
        order.folder.contact_sheet.unlink(missing_ok=True)
    say(f"sheet     {order.workplace.kept.root}: {len(order.pictures)} pictures, {missing} to make{_share(order)}")
    if lacked and order.folder.root.name != order.asked_name:
        say(f"          {order.asked_name} holds other designs, so these have a folder of their own")

    for generation in make(order, finished, stop):
        finished[generation.index] = generation
        if show is not None:
            show(generation)
    own = [finished[index] for index in sorted(order.own) if index in finished]
    return finishing.finish(order.folder, own, order.pictures, order.finishing, stop, say) or lacked


def _make_here(
    say: Say, watch: figures.Watch, order: Order, finished: Mapping[int, Generation], stop: stopping.Stop
) -> Iterator[Generation]:
    """Every stage for all that is missing, a group of batches at a time."""
    for group in production.groups(order, finished):
        yield from production.make(order, group, finished, stop, say, watch)


def _taken_over(
    order: Order, finished: Mapping[int, Generation], say: Say, show: Callable[[Generation], None] | None
) -> dict[int, Generation]:
    """Pictures of earlier sheets that are the same; what is gone from there since is added to what is drawn."""
    lacking = [index for index in order.placed.reused if index not in finished]
    taken = {}
    for generation in sheet.take_over(order.placed, order.run, lacking, order.shard):
        taken[generation.index] = generation
        if show is not None:
            show(generation)
    if taken:
        say(f"taken     {len(taken)} pictures from earlier sheets, where they are the same")
    gone = [index for index in lacking if index not in taken]
    sheet.draw_anew(order.placed, gone, order.at_once, order.shard)
    order.workplace.hand_over(
        [*(path for one in taken.values() for path in one.files()), order.folder.rows(order.shard)]
    )
    return taken


def _ended(order: Order, stop: stopping.Stop, lacked: bool, say: Say) -> bool:
    """The sheet as a whole, once every process has made its part; returns whether this one's part is made.

    lacked  whether something was made that the page and the zip do not hold yet
    """
    finished = sheet.read_finished(order.folder, order.pictures)
    done = [finished[index] for index in sorted(finished)]
    total, own = len(order.pictures), [index for index in order.own if index not in finished]
    if own or stop.asked:
        if done and order.shard.of == 1:
            sheet.show(order.folder, done)
        say(f"Stopped with {len(done)} of {total} pictures finished. Run the same again to go on.")
    elif len(done) < total:
        say(f"This part is finished; {total - len(done)} of {total} pictures are other processes'.")
    else:
        if order.shard.of > 1:  # another process may have been cut off before it came to this
            lacked |= finishing.finish(order.folder, done, order.pictures, order.finishing, stop, say)
        if lacked or not sheet.is_closed(order.folder, pack=order.packs):
            sheet.close(order.folder, done, pack=order.packs)
        else:
            sheet.write_page(order.folder)
        say(f"finished  {len(done)} pictures; all on one page: {order.workplace.kept.index}")
    return not own and not stop.asked


def _delivered(order: Order, is_whole: bool, stop: stopping.Stop, say: Say) -> Designs:
    """The finished pictures where they lie in the end: on Drive, or on this machine where Drive does not take them."""
    finished = sheet.read_finished(order.folder, order.pictures)
    done = [finished[index] for index in sorted(finished)]
    owed = order.workplace.finish(f"{len(done)} designs are finished", 0.0 if stop.asked else SECONDS_FOR_DRIVE)
    if owed:
        say(f"! {owed}")
    folder = order.folder if owed else order.workplace.kept
    return Designs(sheet.lying_in(folder, done), folder, is_whole, owed)


def _share(order: Order) -> str:
    return f" (part {order.shard.number} of {order.shard.of})" if order.shard.of > 1 else ""


def compare(
    config: Config, prompt: str, seeds: Sequence[int], *, say: Say = print
) -> tuple[list[Image.Image], list[Image.Image]]:
    """One prompt, as it is, at the same seeds by the base model alone and with the LoRA: (base, LoRA), unrefined."""
    return compare_all(config, [prompt], seeds, say=say)[0]


def compare_all(
    config: Config, prompts: Sequence[str], seeds: Sequence[int], *, say: Say = print
) -> list[tuple[list[Image.Image], list[Image.Image]]]:
    """The same for several prompts, one pair each, with every model loaded once for all. Writes nothing."""
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settings = for_drawing(presets.settle(config, machine))
    with own_folders.answering(settings):
        lora = adapters.load(RunFolder.of(settings).root)
    base_model = orders.base_model_of(settings, lora, say)
    settings = orders.within_family(settings.with_preset({"refine": "none"}), lora, base_model, say)
    precision, _ = machine.precision(settings.mixed_precision)
    dtype, device = stages.DTYPES[precision], machine.device

    # Every prompt at every seed, without and with the LoRA.
    asked = [(prompt, seed) for prompt in prompts for seed in seeds]
    told, drawn_from = [prompt for prompt, _ in asked], [seed for _, seed in asked]
    width, height = wanted.size_of(settings, lora, base_model)
    check_size(base_model, width, height)
    in_bits = four_bits.base(settings, orders.based_on(settings, lora, base_model, (width, height), machine), say)
    count, negatives = batch_size(base_model, width, height, machine), [settings.negative_prompt] * len(asked)
    batches = in_batches(told, negatives, drawn_from, width, height, count)
    sampled = orders.sampling_of(settings)
    latents: list[Tensor] = []
    words: stages.Words = {}
    for lora_scale in (0.0, settings.lora_scale):
        if not words or lora.changes_text:
            with_text = lora if lora_scale and lora.changes_text else None
            words = stages.encode_prompts(
                base_model, texts_of(batches), lora=with_text, lora_scale=lora_scale, dtype=dtype, device=device
            )
        say(f"drawing {len(asked)} pictures with lora_scale {lora_scale:g}")
        for drawn in stages.denoise(
            base_model,
            batches,
            words,
            sampled,
            lora=lora,
            lora_scale=lora_scale,
            dtype=dtype,
            device=device,
            four_bits=in_bits,
        ):
            latents += drawn.finished_BCHW

    # Pictures, in pairs.
    named = zip([f"{prompt!r} with seed {seed}" for prompt, seed in asked * 2], latents, strict=True)
    decoded = stages.decode(
        base_model, named, device=device, dtype=dtype, vae_model=settings.vae_model, repeat=settings.repeat, say=say
    )
    images = list(decoded)
    base, styled = images[: len(asked)], images[len(asked) :]
    cuts = [slice(start, start + len(seeds)) for start in range(0, len(asked), len(seeds))]
    return [(base[cut], styled[cut]) for cut in cuts]
