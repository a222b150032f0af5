"""Photos sorted into a folder per class: hard links or copies of them. The originals stay where
they are, as they are."""

import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graft.serving.predict import Prediction
from graft.system.console import GraftError

UNSURE = "unsure"


@dataclass(frozen=True)
class Sorter:
    """Where photos go: `folder`/<class>, or `folder`/unsure below the confidence `unsure_below`, in
    [0, 1]; 0 sends none there.

    copy: a copy in any case; otherwise a hard link, which takes no room, and a copy where the file
    system allows no link.
    """

    folder: Path
    classes: tuple[str, ...]
    unsure_below: float = 0.0
    copy: bool = False

    def check(self, sources: Iterable[str]) -> None:
        """Raise GraftError, before any work, where two classes would share a folder, or a source
        holds the folder itself."""
        names = [_folder_name(name) for name in self.classes] + [UNSURE] * (self.unsure_below > 0)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise GraftError(
                f"--sort-into {self.folder}: {twice[0]}/ would be the folder of two classes"
            )
        if not 0 <= self.unsure_below <= 1:
            raise GraftError(f"--unsure-below {self.unsure_below:g}: a confidence from 0 to 1")
        for source in sources:
            place = Path(source).expanduser()
            if place.is_dir() and self.folder.resolve().is_relative_to(place.resolve()):
                raise GraftError(
                    f"--sort-into {self.folder}: lies in {source}, whose photos it shall sort; "
                    "name another"
                )

    def place(self, row: Prediction) -> Path | None:
        """Put the photo of a Prediction into its folder, once; where it lies then, None for one
        with a problem.

        A photo that has the name of another one gets eight digits of its own path's digest behind
        it. Raises GraftError where the folder cannot be written.
        """
        if row.problem:
            return None
        source = Path(row.path).resolve()  # of a symbolic link, what it points to
        class_folder = self.folder / (
            UNSURE if row.confidence < self.unsure_below else _folder_name(row.predicted)
        )
        name = Path(row.path)
        digest = hashlib.sha256(os.fsencode(Path(row.path).absolute())).hexdigest()[:8]
        try:
            class_folder.mkdir(parents=True, exist_ok=True)
            for target in (
                class_folder / name.name,
                class_folder / f"{name.stem}-{digest}{name.suffix}",
            ):
                if not os.path.lexists(target):
                    self._put(source, target)
                    return target
                if _same(source, target):
                    return target
        except OSError as error:
            raise GraftError(
                f"--sort-into {self.folder}: cannot be written: {error.strerror}"
            ) from None
        raise GraftError(
            f"--sort-into {self.folder}: {target} is another photo; name an empty folder"
        )

    def _put(self, source: Path, target: Path) -> None:
        if not self.copy:
            try:
                os.link(source, target)
                return
            except OSError:  # another file system, or one without links
                pass
        part = target.with_name(f".{target.name[:100]}.{os.getpid()}")
        try:
            shutil.copy2(source, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _folder_name(name: str) -> str:
    """A class's name, which may come from a table of labels, as one folder's."""
    name = name.replace("/", "_").replace("\0", "_")
    return f"_{name}" if name in ("", ".", "..") else name


def _same(a: Path, b: Path) -> bool:
    return b.is_file() and (a.samefile(b) or filecmp.cmp(a, b, shallow=False))
