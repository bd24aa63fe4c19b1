"""Renaming the keys of a state dict by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str] | None], ...]


def rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Every key under the name that the first rule with a full match gives it.

    Args:
        rules: pairs of a pattern and its replacement, as for `re.sub`; None drops the key.

    Raises:
        ValueError: no rule knows a key, or two keys become one.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        found = next(((m, new) for pattern, new in rules if (m := re.fullmatch(pattern, key))), None)
        if found is None:
            raise ValueError(f"weights: {key!r} is no key of this architecture")
        match, replacement = found
        if replacement is None:
            continue
        new_key = replacement(match) if callable(replacement) else match.expand(replacement)
        if new_key in renamed:
            raise ValueError(f"weights: {key!r} and another key both become {new_key!r}")
        renamed[new_key] = value
    return renamed


def join_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the tensors `name#0`, `name#1`, ... along their first axis, under `name`; all others stay."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name, mark, index = key.partition("#")
        if mark:
            parts.setdefault(name, {})[int(index)] = value
        else:
            joined[key] = value
    return joined | {name: torch.cat([found[i] for i in sorted(found)]) for name, found in parts.items()}
