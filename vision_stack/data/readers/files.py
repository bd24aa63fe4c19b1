"""What is in a folder: names of files below it, and the beginnings of some of them.

Readers look files up among these names. Hidden files and folders are not among them, nor are links that lead out of
the folder, so that nothing outside of it is ever opened.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from vision_stack.data.checks.issues import data_error

IMAGES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
)  # the suffixes of `images.IMAGE_SUFFIXES`, for which nothing heavy need be imported
MAX_FILES = 2_000_000
MAX_HEADS = 40  # of a suffix, that are looked into
HEAD, TAIL = 4096, 2048  # bytes
MAX_TEXT = 64_000_000  # bytes of a label file


class Files:
    """Files below `root`, by names relative to it with "/" between folders, sorted."""

    def __init__(self, root: Path, names: Iterable[str], outside: Iterable[str] = ()) -> None:
        self.root = root
        self.asked: str | None = None  # the format that the user says it has
        self.names = list(names)
        self.outside = list(outside)  # links that lead out of the root, which are left out

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def by_suffix(self) -> dict[str, list[str]]:
        """By suffix in lower case, names at the top first."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(suffix_of(name), []).append(name)
        return {suffix: sorted(names, key=lambda n: (n.count("/"), n)) for suffix, names in found.items()}

    @cached_property
    def images(self) -> list[str]:
        return [name for name in self.names if suffix_of(name) in IMAGES]

    @cached_property
    def folders(self) -> dict[str, list[str]]:
        """Names by the folder that they are in; "" is the root."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.rpartition("/")[0], []).append(name)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Images by their names without folder and suffix."""
        found: dict[str, list[str]] = {}
        for name in self.images:
            found.setdefault(PurePosixPath(name).stem, []).append(name)
        return found

    def of(self, *suffixes: str) -> list[str]:
        return [name for suffix in suffixes for name in self.by_suffix.get(suffix, [])]

    def below(self, folder: str) -> list[str]:
        """Names in a folder and those in it."""
        return [name for name in self.names if name.startswith(f"{folder}/")] if folder else self.names

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def image_at(self, name: str, *folders: str) -> str | None:
        """The image that a label file means by a name: relative to one of the folders, or alone of that name.

        Windows' slashes and what leads out of a folder are read as far as they lead to a file of the data set.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        for folder in folders:
            if (path := _joined(folder, parts)) in self.known and suffix_of(path) in IMAGES:
                return path
        if not parts:
            return None
        named = self.by_stem.get(PurePosixPath(parts[-1]).stem, [])
        exact = [image for image in named if image.rpartition("/")[2] == parts[-1]] or named
        if len(exact) > 1 and len(parts) > 1:
            ending = [image for image in exact if image.split("/")[-2:-1] == parts[-2:-1]]
            exact = ending or exact
        return exact[0] if len(exact) == 1 else None

    def image_beside(self, *stems: str) -> str | None:
        """The image that has one of these names, apart from its suffix."""
        for stem in stems:
            found = [image for image in self.by_stem.get(posixpath.basename(stem), ()) if stem_of(image) == stem]
            if len(found) == 1:
                return found[0]
        return None

    def read_text(self, name: str) -> str:
        """The text in a file of the data set. Raises DataError where it cannot be read."""
        path, remedy = self.path(name), "export it again"
        try:
            if os.path.getsize(path) > MAX_TEXT:
                raise data_error(path, "file", f"more than {MAX_TEXT:,} bytes", remedy)
            return Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise data_error(path, "file", "not text in UTF-8", remedy) from None
        except OSError as error:
            raise data_error(path, "file", f"cannot be read ({error.strerror})", "check its permissions") from None

    def head(self, name: str) -> str:
        """The beginning of a file and its end, as text; empty if it cannot be read."""
        if name not in self._heads:
            self._heads[name] = _head(self.path(name))
        return self._heads[name]

    @cached_property
    def _heads(self) -> dict[str, str]:
        return {}

    def heads(self, *suffixes: str) -> Iterator[tuple[str, str]]:
        """Of some files: spread over all that have the suffix, so that different folders are seen."""
        names = self.of(*suffixes)
        step = max(1, len(names) // MAX_HEADS)
        for name in names[::step][:MAX_HEADS]:
            yield name, self.head(name)

    def shown(self, suffix: str, limit: int = 6) -> str:
        return some(self.by_suffix.get(suffix, []), limit)

    def counts(self) -> str:
        """How many of each suffix: `120 .txt, 120 .jpg and 2 .yaml files`."""
        most = sorted(self.by_suffix.items(), key=lambda item: (-len(item[1]), item[0]))[:4]
        kinds = [f"{len(names):,} {suffix or 'unnamed'}" for suffix, names in most]
        kinds = [", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds
        return f"{' and '.join(kinds)} files" if kinds else "no files"


def list_files(root: Path) -> Files:
    """All files in a folder and below it. Links to folders inside of it are followed.

    Raises:
        DataError: there are more than `MAX_FILES`.
    """
    real = os.path.realpath(root)
    names: list[str] = []
    outside: list[str] = []
    folders = [("", frozenset((real,)))]  # and the real folders on the way to each, which no link may lead back to
    while folders:
        folder, above = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except (
            OSError
        ):  # not to be listed: as if it were not there; what refers to its files says that they are missing
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            target = os.path.realpath(entry.path) if entry.is_symlink() else ""
            if target and not target.startswith(real.rstrip(os.sep) + os.sep):
                outside.append(name)
            elif entry.is_dir():
                if target not in above:
                    folders.append((name, above | {target} if target else above))
            elif entry.is_file():
                names.append(name)
        if len(names) > MAX_FILES:
            raise data_error(
                root, "data.root", f"holds more than {MAX_FILES:,} files", "give the data set's own folder"
            )
    return Files(Path(root), sorted(names), sorted(outside))


def some(names: Iterable[str], limit: int = 6) -> str:
    """The first ones, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def folders_of(names: Iterable[str]) -> str:
    """The first of the folders that files are in, for printing."""
    return some(sorted({posixpath.dirname(name) or "." for name in names}), 2)


def suffix_of(name: str) -> str:
    """In lower case, with its dot."""
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if dot > 0 else ""


def stem_of(name: str) -> str:
    """A name without its suffix, folders included."""
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def _joined(folder: str, parts: list[str]) -> str:
    path = folder.split("/") if folder else []
    for part in parts:
        if part != "..":
            path.append(part)
        elif path:
            path.pop()
    return "/".join(path)


def _head(path: str) -> str:
    try:
        with open(path, "rb") as file:
            start = file.read(HEAD)
            length = file.seek(0, os.SEEK_END)
            if length > HEAD:
                file.seek(max(HEAD, length - TAIL))
                start += b"\n" + file.read(TAIL)
    except OSError:
        return ""
    return start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
