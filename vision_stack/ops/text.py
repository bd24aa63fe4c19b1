"""Names: made fit for one line of a terminal or a picture, and chosen by a part or a pattern."""

from __future__ import annotations

import unicodedata
from fnmatch import fnmatch

_NO_LETTERS = ("Cc", "Cs")  # control characters, and lone surrogates, which no encoding of text can hold


def shorten(text: str, most: int = 40) -> str:
    """At most `most` characters, the last one an ellipsis where there are more; without line breaks, and with control
    characters and lone surrogates escaped."""
    words = " ".join(text.split())
    shown = "".join(repr(c)[1:-1] if unicodedata.category(c) in _NO_LETTERS else c for c in words[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def matches(text: str, name: str) -> bool:
    """Whether a name has this part, or fits this pattern, with `*` as in a shell."""
    return fnmatch(name, text) if "*" in text else text in name
