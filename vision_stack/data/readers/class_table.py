"""Tables of classes: a json list of `{"id": ..., "name": ...}` or of names, or a text, `id name` or a name a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_stack.data.checks.issues import data_error, show
from vision_stack.data.readers.json_file import parse_json

_ID_NAME = re.compile(r"(?P<id>\d+)\s+(?P<name>.+)")  # a line of a class table
_NAME_ID = re.compile(r"(?P<name>.*[^\s,:;=])[\s,:;=]+(?P<id>\d+)")  # as some write it
_NOT_A_NAME = re.compile(r"-?\d+(\s|[,:;]|$)|#")  # begins with an id, or is a comment


def read_class_table(file: str) -> list[dict[str, Any]]:
    """The entries of a class table, as `read_categories` takes them.

    Raises:
        DataError: missing, unreadable or empty, or of another structure, such as ids in some lines only.
    """
    remedy = 'give a json list of {"id": ..., "name": ...}, or a text file with one `id name` a line'
    if file.lower().endswith(".json"):
        data = parse_json(file, remedy)
        if not isinstance(data, list) or not data:
            raise data_error(file, "top level", f"expected a list of classes, got {show(data)}", remedy)
        named = all(isinstance(item, str) for item in data)
        return [{"id": index, "name": name} for index, name in enumerate(data)] if named else data
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise data_error(file, "file", f"cannot be read ({type(error).__name__})", remedy) from None
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if not lines:
        raise data_error(file, "file", "there are no classes", remedy)
    return _entries(file, lines)


def _entries(file: str, lines: dict[int, str]) -> list[dict[str, Any]]:
    """Of a text's lines, by their numbers."""
    entries = [_ID_NAME.fullmatch(line) for line in lines.values()]
    odd = [number for number, line in lines.items() if _NOT_A_NAME.match(line)]
    swapped = [_NAME_ID.fullmatch(line) for line in lines.values()]
    form = "id name"
    if not odd and _tells_ids(swapped):
        form, entries, odd = "name id", swapped, list(lines)[1:]
    if all(entries):
        return [{"id": int(entry["id"]), "name": entry["name"]} for entry in entries if entry]
    if odd:  # by position, every class after a heading or a comment would be off by one
        wrong = [number for number, entry in zip(lines, entries, strict=True) if entry is None]
        number = next((n for n in wrong if n in odd), wrong[0])
        message = f"{show(lines[number])} is not `{form}`" + (f", as line {odd[0]} is" if number not in odd else "")
        remedy = "write `id name` in all lines, ids from 0 on, no heading or comment; or only names, of 0, 1, ..."
        raise data_error(file, f"line {number}", message, remedy)
    return [{"id": index, "name": name} for index, name in enumerate(lines.values())]


def _tells_ids(swapped: Sequence[re.Match[str] | None]) -> bool:
    """Whether lines that end in numbers are `name id`, all of them or all below a heading, and not only names.

    "lane 1" and "lane 2" are names: without its number, neither says which class it is.
    """
    found = [entry for entry in swapped if entry]
    complete = len(found) == len(swapped) or (len(found) > 1 and found == list(swapped[1:]))
    return complete and all(len({entry[part] for entry in found}) == len(found) for part in ("name", "id"))
