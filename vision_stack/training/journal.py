"""What predict has done so far, kept on disk, so that a stopped run resumes where it was and memory holds one image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vision_stack.ops.files import naming

FORMAT_VERSION = 1
Entry = dict[str, Any]


class Journal:
    """A file of json lines: first what the run was asked for, then a line for each image, once its results are written.

    Args:
        path: of the file; lines that are there already are taken over.
        asked: what results depend on, by the name that a user knows it by; plain values.
        is_valid: whether an image's line is still good: its file as it was, its results where they were.

    Raises:
        ValueError: the file is of a run that was asked for something else, or none of this program's.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], is_valid: Callable[[Entry], bool]) -> None:
        self.path = path
        self._lines: dict[str, int] = {}  # name of an image -> where its line begins
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            self._file = path.open("a+b")
        end = self._take_over({"format_version": FORMAT_VERSION, **asked}, is_valid)
        if end < os.path.getsize(path):  # a line that was being written when the machine stopped
            self._file.truncate(end)
        if not end:
            self._append({"format_version": FORMAT_VERSION, **asked})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, name: str, entry: Entry) -> None:
        """An image is done; `entry` holds plain values."""
        self._lines[name] = self._append({"image": name, **entry})

    def entries(self, names: Iterable[str]) -> Iterator[tuple[str, Entry]]:
        """What was added, of those of these images that are done, one at a time."""
        with self.path.open("rb") as file:
            for name in names:
                if name in self._lines:
                    file.seek(self._lines[name])
                    yield name, json.loads(file.readline())

    def _append(self, content: Mapping[str, Any]) -> int:
        with naming(self.path):
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(content).encode() + b"\n")
            self._file.flush()
        return start

    def _take_over(self, asked: Mapping[str, Any], is_valid: Callable[[Entry], bool]) -> int:
        """Read the lines that are whole; where they end."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            entry = _decoded(line)
            if end == 0:
                self._check_asked(line, entry, asked)
            if entry is None:
                break
            if end and is_valid(entry):
                self._lines[entry["image"]] = end
            end += len(line)
        return end

    def _check_asked(self, line: bytes, entry: Entry | None, asked: Mapping[str, Any]) -> None:
        if entry is None and (not line.endswith(b"\n") or not line.strip(b"\0\n")):
            return  # stopped at its very beginning
        if entry is None or "format_version" not in entry:
            raise ValueError(f"run_dir: {self.path} is not a file of predict; give another run_dir")
        for name, now in asked.items():
            if (before := entry.get(name)) != now:
                raise ValueError(
                    f"run_dir: {self.path.parent} holds predictions with another {name} ({before}, now {now}); give "
                    f"another run_dir, or delete {self.path.name} in it to start over"
                )


def _decoded(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
