"""Reading a COCO-style json as far as its outermost structure, and refusing it in words."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from typing import Any

from vision_stack.data.checks.issues import DataError, Problem, data_error, listing, show
from vision_stack.data.readers.json_stream import LARGE, Annotations, stream_json


def load_coco_json(file: str, kind: str = "instance", *, streamed: bool = False) -> dict[str, Any]:
    """A mapping with lists of images, annotations and categories, none of them empty.

    Args:
        streamed: annotations of a large file may be `Annotations` instead of a list.
        kind: of json that is wanted, for the remedy: "instance" or "panoptic".

    Raises:
        DataError: missing, unreadable, no json, or of another structure.
    """
    remedy = f"give a COCO {kind} json"
    data = _streamed(file) if streamed else None
    data = parse_json(file, remedy) if data is None else data
    if not isinstance(data, dict):
        hint = " (COCO results, not annotations?)" if isinstance(data, list) else ""
        message = f"expected a mapping with images, annotations and categories, got {show(data)}{hint}"
        raise data_error(file, "top level", message, remedy)
    for key in ("images", "annotations", "categories"):
        if key not in data:
            raise data_error(file, key, "missing", remedy)
        if not isinstance(data[key], list | Annotations):
            raise data_error(file, key, f"expected a list, got {show(data[key])}", remedy)
        if not data[key]:
            raise data_error(file, key, f"there are no {key}", "check that the export is complete")
    return data


def _streamed(file: str) -> dict[str, Any] | None:
    """A large file, unless something is wrong with it."""
    try:
        return stream_json(file) if os.path.isfile(file) and os.path.getsize(file) >= LARGE else None
    except (OSError, ValueError):
        return None


def refusal(file: str, problems: Sequence[Problem]) -> str:
    """The text of the error that stops at broken records."""
    if len(problems) == 1:
        return f"{problems[0]} (or leave the record out with data.on_error=skip)"
    head = f"{file}: {len(problems):,} problems; fix them, or skip the broken records with data.on_error=skip"
    return f"{head}\n{listing(problems)}"


def parse_json(file: str, remedy: str) -> Any:
    """Whatever a json file holds. Raises DataError with the remedy where it cannot be read."""
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise data_error(file, "file", "not a regular file", remedy)
        if not status.st_size:
            raise data_error(file, "file", "the file is empty", "export or download it again")
        with open(file, encoding="utf-8-sig") as stream:
            return json.load(stream)
    except FileNotFoundError:
        raise data_error(file, "file", "there is no such file", "check the path") from None
    except UnicodeDecodeError:
        raise data_error(file, "file", "not text in UTF-8", remedy) from None
    except json.JSONDecodeError as error:
        message = f"not valid json: {error.msg} in line {error.lineno}, column {error.colno}"
        raise data_error(file, "file", message, "export or download it again") from None
    except RecursionError:
        raise data_error(file, "file", "nested too deeply to be read", remedy) from None
    except OSError as error:
        raise data_error(file, "file", f"cannot be read ({error.strerror})", "check its permissions") from None
    except DataError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise data_error(file, "file", f"cannot be read ({str(error)[:80]})", remedy) from None
