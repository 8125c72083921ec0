"""The file in which encoded pictures and captions are kept, for all runs and models: added to in small pieces.

    <cache_dir>/cache.safetensors                     the entries
    <cache_dir>/cache-<time>-<process>.safetensors    what was added since; the newest counts
    <cache_dir>/cache_used.json                       when each group of entries was last wanted

Writing 0.5 GB takes 1.5 s on a local disk and minutes through Drive, so what is new is written as a piece of its own,
and pieces are put together only when they are worth it. Every entry has its checksum: a damaged one is encoded again.

Processes may share the folder. Each writes pieces under names of its own; one at a time puts them together, and deletes
only what it has put into the file before. Readers open pieces before the file, so they miss nothing that moves.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lace_lora import checkpoint, tensor_files
from lace_lora.errors import LaceError, RunError

Say = Callable[[str], None]
SAVE_EVERY_SECONDS = 60.0  # a cut-off while encoding loses at most this much
LARGEST_BYTES = 8 * 2**30  # of all entries; beyond it those unused for longest go. 300 pictures with flips take 0.4 GB
PIECES_AT_MOST = 16
PIECES_SHARE = 8  # pieces are put together when they have an eighth of the file's size, so each byte moves a few times
FORGOTTEN_SECONDS = 3600.0  # half-written files of this age belong to a process that was killed
SUMS = "crc32"


@dataclass(frozen=True)
class Piece:
    """One file, opened: its entries are read from the disk when they are looked at."""

    path: Path
    tensors: Any  # safetensors' open file
    sums: Mapping[str, int]
    size_bytes: int


@dataclass
class Store:
    """Entries by key: what lies on the disk, and what is still to be written."""

    folder: Path
    say: Say
    pieces: list[Piece]  # newest last
    places: dict[str, Piece]  # of each key on the disk
    fresh: dict[str, Tensor] = field(default_factory=dict)
    sound: set[str] = field(default_factory=set)  # keys whose checksum was looked at
    wanted: set[str] = field(default_factory=set)  # keys that were asked for
    saved_at: float = 0.0

    @property
    def path(self) -> Path:
        """The file that pieces are put into."""
        return self.folder / "cache.safetensors"

    def __contains__(self, key: str) -> bool:
        """Whether an entry is here and undamaged."""
        self.wanted.add(key)
        if key in self.fresh or key in self.sound:
            return True
        piece = self.places.get(key)
        if piece is None:
            return False
        if _sum(piece.tensors.get_tensor(key)) != piece.sums.get(key):
            self.say(f"An entry of the cache {piece.path} is damaged; what it held is encoded again.")
            del self.places[key]
            return False
        self.sound.add(key)
        return True

    def __getitem__(self, key: str) -> Tensor:
        """An entry; one that lies on the disk is read when its numbers are."""
        if key in self.fresh:
            return self.fresh[key]
        found: Tensor = self.places[key].tensors.get_tensor(key)
        return found

    def add(self, entries: Mapping[str, Tensor]) -> None:
        """Keep new entries; they reach the disk within a minute, or with `save`."""
        self.fresh |= {key: tensor.detach().to("cpu").contiguous() for key, tensor in entries.items()}
        self.wanted |= set(entries)
        if time.monotonic() - self.saved_at > SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is new as a piece. Raises RunError or MachineError where that cannot be done."""
        self.saved_at = time.monotonic()
        if not self.fresh:
            return
        path = self.folder / f"cache-{time.time_ns():020d}-{os.getpid()}.safetensors"
        try:
            _write(path, self.fresh, {key: _sum(tensor) for key, tensor in self.fresh.items()})
        except RunError as error:
            reason = error.__cause__ or error
            raise RunError(f"The cache {path} cannot be written ({reason}). Choose another cache_dir.") from error
        piece = _opened(path, self.say)
        if piece is None:
            raise RunError(f"The cache {path} cannot be read back. Choose another cache_dir.")
        self.pieces.append(piece)
        self.places |= dict.fromkeys(self.fresh, piece)
        self.sound |= set(self.fresh)
        self.fresh = {}

    def load(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Entries for a whole run: in memory where half of what is free holds them, else read from the disk at need."""
        found = {key: self[key] for key in keys}
        size = sum(tensor.nbytes for tensor in found.values())
        if size > psutil.virtual_memory().available / 2:
            return found
        return {key: tensor.clone() for key, tensor in found.items()}

    def close(self) -> None:
        """Save, note what was used, and put pieces together where they are worth it.

        What fails here costs nothing but time later, so it is said, not raised: the entries are on the disk already.
        """
        self.save()
        try:
            used = _note_used(self.folder, self.wanted)
            if _is_worth_it(self.pieces, self.path):
                _put_together(self.folder, used, {_group(key) for key in self.wanted}, self.say)
        except LaceError as error:
            self.say(f"The cache stays in pieces for now. {error}")


def open_store(folder: str | Path, say: Say) -> Store:
    """What is kept in a folder, which need not be there yet. What cannot be read is said, and counts as absent."""
    where = Path(folder).expanduser()
    pieces = _pieces(where, say)
    return Store(where, say, pieces, {key: piece for piece in pieces for key in piece.sums}, saved_at=time.monotonic())


# -- inside --


def _pieces(folder: Path, say: Say) -> list[Piece]:
    """The file and its pieces, newest last. Pieces are opened first: one that vanishes now is in the file already."""
    added = [_opened(path, say) for path in sorted(folder.glob("cache-*.safetensors"))]
    return [piece for piece in (_opened(folder / "cache.safetensors", say), *added) if piece is not None]


def _opened(path: Path, say: Say) -> Piece | None:
    try:
        size = path.stat().st_size
        tensors = safe_open(path, framework="pt")
        sums = json.loads((tensors.metadata() or {})[SUMS])
        if not set(tensors.keys()) >= set(sums):
            raise ValueError("it does not hold what it lists")
        return Piece(path, tensors, sums, size)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        say(f"The cache {path} cannot be read ({error}); pictures and captions are encoded again.")
        return None


def _write(path: Path, tensors: dict[str, Tensor], sums: Mapping[str, int]) -> None:
    def write(partial: Path) -> None:
        tensor_files.write(partial, tensors, {SUMS: json.dumps(sums)})
        with open(partial, "rb") as file, suppress(OSError):  # some network file systems have no fsync
            os.fsync(file.fileno())

    checkpoint.write_file(path, write)


def _sum(tensor: Tensor) -> int:
    """CRC-32 of the bytes: 0.1 s for 0.5 GB, so that it can be looked at every time."""
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)


def _group(key: str) -> str:
    """Entries that are forgotten together: `latents/<VAE>/<picture>` for all its cuts."""
    return "/".join(key.split("/")[:3])


def _note_used(folder: Path, keys: Iterable[str]) -> dict[str, int]:
    """Write down that these were wanted now; returns when each known group was last wanted, in seconds."""
    path = folder / "cache_used.json"
    try:
        used: dict[str, int] = {str(key): int(when) for key, when in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        used = {}
    used |= dict.fromkeys(map(_group, keys), int(time.time()))
    _write_used(folder, used)
    return used


def _write_used(folder: Path, used: Mapping[str, int]) -> None:
    """Two processes may write at once, and one of them fail: at worst something is forgotten too soon."""
    with suppress(LaceError):
        checkpoint.write_json(folder / "cache_used.json", used)


def _is_worth_it(pieces: list[Piece], path: Path) -> bool:
    added = [piece.size_bytes for piece in pieces if piece.path != path]
    whole = sum(piece.size_bytes for piece in pieces)
    return bool(added) and (
        sum(added) * PIECES_SHARE >= whole - sum(added) or len(added) > PIECES_AT_MOST or whole > LARGEST_BYTES
    )


def _put_together(folder: Path, used: Mapping[str, int], wanted: set[str], say: Say) -> None:
    """Write the file anew from all pieces that are there now, also those of other processes, and delete the pieces."""
    path = folder / "cache.safetensors"
    with _alone(folder) as is_alone:
        if not is_alone:
            return
        pieces = _pieces(folder, lambda _: None)  # what cannot be read was said before
        places = {key: piece for piece in pieces for key in piece.sums}
        kept = _within_bound(places, used, wanted, say)
        tensors = {key: places[key].tensors.get_tensor(key) for key in kept}
        _write(path, tensors, {key: places[key].sums[key] for key in kept})
        for piece in pieces:
            if piece.path != path:
                piece.path.unlink(missing_ok=True)
        _sweep(folder)
        _write_used(folder, {key: used.get(key, 0) for key in map(_group, kept)})


def _within_bound(places: Mapping[str, Piece], used: Mapping[str, int], wanted: set[str], say: Say) -> list[str]:
    """The keys to keep: all groups wanted now, then those used last, as far as there is room."""
    groups: dict[str, list[str]] = {}
    for key in places:
        groups.setdefault(_group(key), []).append(key)
    room, kept, dropped = LARGEST_BYTES, list[str](), 0
    for name in sorted(groups, key=lambda one: (one not in wanted, -used.get(one, 0), one)):
        room -= sum(places[key].tensors.get_tensor(key).nbytes for key in groups[name])
        if room >= 0 or name in wanted:
            kept += groups[name]
        else:
            dropped += 1
    if dropped:
        say(f"cache     {dropped} pictures and captions of other runs, unused for longest, are forgotten to make room")
    return kept


def _sweep(folder: Path) -> None:
    """Delete what a process that was killed left half-written or unreadable."""
    for path in [*folder.glob("cache*.partial"), *folder.glob("cache-*.safetensors")]:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS:
                path.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process is putting the pieces of this folder together; true where that cannot be told."""
    with checkpoint.writing(folder), open(folder / "cache.lock", "ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except (ImportError, OSError):  # Windows; file systems without locks: at worst something is encoded twice
            pass
        yield True
