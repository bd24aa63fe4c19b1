"""Annotations of a json too large to be held as Python objects, which take ten times the file: one after the other.

The file is parsed twice. The first pass checks all of it and keeps everything but the annotations; whoever iterates
over these parses them again from where they stand.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

from vision_stack.data.checks.issues import whole_number

try:
    from orjson import loads
except ImportError:  # the same, several times as slow
    from json import loads  # type: ignore[assignment]

LARGE = 100 * 2**20  # bytes, from which on it is worth it
CHUNK = 2**22  # characters
_SPACE = " \t\n\r"
_MARGIN = 64  # a number at the end of what was read may go on
_TRIES = 8  # of braces that an item may end with


class NotStreamed(ValueError):
    """The file is not a mapping that can be read in this way; reading it as a whole says what is wrong, if anything."""


class Annotations:
    """The list under `annotations`; parsed anew each time."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.start = 0  # characters before its first item
        self.category_ids: Counter[int] = Counter()  # how many annotations have which
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        with open(self.file, encoding="utf-8-sig") as stream:
            text = _Text(stream)
            text.skip(self.start)
            yield from text.items()


def stream_json(file: str) -> dict[str, Any]:
    """The mapping that a file holds, with `Annotations` under "annotations".

    Raises:
        NotStreamed: it is not such a mapping, or not valid json.
    """
    result: dict[str, Any] = {}
    with open(file, encoding="utf-8-sig") as stream:
        text = _Text(stream)
        text.expect("{")
        while True:
            key = text.value()
            if not isinstance(key, str) or key in result:
                raise NotStreamed(file)
            text.expect(":")
            if key == "annotations" and text.peek() == "[":
                text.expect("[")
                annotations = Annotations(file)
                annotations.start = text.position
                for item in text.items():
                    annotations.count += 1
                    if isinstance(item, dict) and (number := whole_number(item.get("category_id"))) is not None:
                        annotations.category_ids[number] += 1
                result[key] = annotations
            else:
                result[key] = text.value()
            if text.peek() != ",":
                break
            text.expect(",")
        text.expect("}")
        if text.peek():
            raise NotStreamed(file)
    return result


class _Text:
    """A window of a file that moves forward."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._scan: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # not in its stubs
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    @property
    def position(self) -> int:
        """Characters of the file before the next one."""
        return self._before + self._at

    def skip(self, count: int) -> None:
        while self.position + len(self._text) - self._at < count and not self._ended:
            self._at = len(self._text)
            self._more()
        self._at = count - self._before

    def peek(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise NotStreamed(character)
        self._at += 1

    def value(self) -> Any:
        if not self.peek():
            raise NotStreamed
        while True:
            try:
                found, end = self._scan(self._text, self._at)
            except (StopIteration, json.JSONDecodeError, RecursionError) as error:
                if self._ended:
                    raise NotStreamed from error
            else:
                if self._ended or end < len(self._text) - _MARGIN or self._text[end - 1] in "}]":
                    self._at = end
                    return found
            self._more()

    def items(self) -> Iterator[Any]:
        """Of a list that has been entered, which is left."""
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            mapping = self._mapping()
            yield self.value() if mapping is None else mapping
            if self.peek() == "]":
                self._at += 1
                return
            self.expect(",")

    def _mapping(self) -> dict[str, Any] | None:
        """The next value, if it is a mapping that ends with one of the next braces and is of common values.

        A mapping that is complete goes on nowhere, so that the first brace up to which there is one ends it.
        """
        if self.peek() != "{":
            return None
        end = self._at
        for _ in range(_TRIES):
            end = self._text.find("}", end) + 1
            if not end:
                return None
            try:
                found: dict[str, Any] = loads(self._text[self._at : end])
            except ValueError:
                continue
            self._at = end
            return found
        return None

    def _more(self) -> None:
        rest = self._text[self._at :]
        chunk = self._stream.read(max(CHUNK, len(rest)))  # at least doubled, so that a long value is not tried often
        self._ended = not chunk
        self._before += self._at
        self._text, self._at = rest + chunk, 0
