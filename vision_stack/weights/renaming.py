"""Renaming the keys of a state dict by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str] | None], ...]
Names = tuple[tuple[str, str], ...]  # pairs (theirs, ours) that hold both ways; {i}, {j} are numbers, {p} is a word


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
            raise ValueError(f"weights: {key!r} is not a key of this architecture")
        match, replacement = found
        if replacement is None:
            continue
        new_key = replacement(match) if callable(replacement) else match.expand(replacement)
        if new_key in renamed:
            raise ValueError(f"weights: {key!r} and another key both become {new_key!r}")
        renamed[new_key] = value
    return renamed


def join_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the tensors `name#0`, `name#1`, ... along their first axis, under `name`; all others stay.

    Of scalars, such as the number of batches that norms have seen, it keeps the first.
    """
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name, mark, index = key.partition("#")
        if mark:
            parts.setdefault(name, {})[int(index)] = value
        else:
            joined[key] = value
    for name, found in parts.items():
        joined[name] = torch.cat([found[i] for i in sorted(found)]) if found[0].ndim else found[0]
    return joined


def to_ours(names: Names) -> Rules:
    """The rules that rename theirs to ours."""
    return tuple((_pattern(theirs), _replacement(ours)) for theirs, ours in names)


def to_theirs(names: Names) -> Rules:
    """The rules that rename ours to theirs; where two of theirs mean the same of ours, the first is given."""
    return tuple((_pattern(ours), _replacement(theirs)) for theirs, ours in names)


def _pattern(template: str) -> str:
    pieces = re.split(r"\{(\w)\}", template)  # text and placeholders by turns
    kinds = {"i": r"\d+", "j": r"\d+", "p": r"\w+"}
    groups = [f"(?P<{name}>{kinds[name]})" for name in pieces[1::2]]
    return "".join(re.escape(text) + group for text, group in zip(pieces[::2], [*groups, ""], strict=True))


def _replacement(template: str) -> str:
    return re.sub(r"\{(\w)\}", r"\\g<\1>", template)


def split_part(state: Mapping[str, Tensor], ending: str, count: int) -> dict[str, Tensor]:
    """Undo `join_parts`: tensors whose names contain `ending` are split into `name#0` to `name#count-1`."""
    split: dict[str, Tensor] = {}
    for key, value in state.items():
        if ending in key:
            pieces = value.chunk(count) if value.ndim else (value,) * count
            split |= {f"{key}#{i}": part for i, part in enumerate(pieces)}
        else:
            split[key] = value
    return split
