"""annotations.txt through one sitting, in which others may write it too: a text editor, a second notebook, a command.

Only the lines that are changed here are changed there; all others stay as they stand on the disk at that moment.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from lace_lora import places
from lace_lora.annotations import ANNOTATIONS, complaint, parse
from lace_lora.checkpoint import write_text
from lace_lora.file_names import printable, relative_name
from lace_lora.own_files import OwnFile, backup_name, spare_of, writable

_log = logging.getLogger(__name__)
_ONE_WRITER = threading.RLock()  # a gallery's timer and a cell run in one program


class AnnotationsFile:
    """The captions of a folder of photographs by name, in a file there or elsewhere.

    say        is told where earlier content is kept
    cache_dir  where the content is put down while the file cannot be written; None puts it nowhere
    """

    def __init__(
        self,
        folder: Path,
        path: Path | None = None,
        say: Callable[[str], None] = _log.info,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.path = path or self.folder / ANNOTATIONS
        spare = spare_of(self.path, cache_dir) if cache_dir else None
        self._file = OwnFile(self.path, say, spare, self.folder if path is None else places.nearest(self.path.parent))
        self._say = say
        self._own: dict[str, str] = {}  # what was written here, as it was written last

    def captions(self) -> dict[str, str]:
        """What stands there now, none where there is no such file; lines of pictures that are gone are read too.

        Raises PicturesError for lines that cannot be read: whoever writes the file would lose them.
        """
        if not self.path.is_file():
            return {}
        rows, problems = parse(self.path)
        found: dict[str, str] = {}
        for number, path, caption in rows:
            name = relative_name(self.folder, path)
            if name is None:
                problems.append(f"line {number} leads outside the folder: {printable(path)}")
            elif name in found:
                problems.append(f"line {number} names {printable(name)} again")
            else:
                found[name] = caption
        if problems:
            raise complaint(self.path, problems, "Correct or remove these lines first.")
        return {name: caption for name, caption in found.items() if caption}

    def change(self, captions: Mapping[str, str | None]) -> dict[str, str]:
        """Write these captions over what stands there now, None taking a line away; returns what stands there then.

        Raises PicturesError as `captions` does, or where the file cannot be written; nothing is written then.
        """
        with _ONE_WRITER:
            # Where Drive was unmounted, what was typed in this sitting is put down on this machine.
            now = dict(self._own) if self._file.is_away else self.captions()
            lost = {name: text for name, text in self._own.items() if now.get(name) != text and name not in captions}
            self._keep(lost)
            for name, caption in captions.items():
                if caption:
                    now[name] = self._own[name] = caption
                else:
                    now.pop(name, None)
                    self._own.pop(name, None)
            if now or self.path.is_file():
                self._file.write(_text(now))
            return now

    def _keep(self, lost: Mapping[str, str]) -> None:
        """Captions that were written here and that somebody else has written over since, beside the file."""
        if lost:
            kept = backup_name(self.path, _text(lost).encode())
            with writable(kept):
                write_text(kept, _text(lost))
            self._say(f"{len(lost)} captions of this sitting were changed elsewhere; they are kept as {kept.name}")
            for name in lost:
                del self._own[name]


def _text(captions: Mapping[str, str]) -> str:
    return "".join(f"{name}\t{caption}\n" for name, caption in captions.items())
