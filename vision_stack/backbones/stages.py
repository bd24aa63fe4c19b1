"""Choosing the stages of a backbone by name (`out_features`), position (`out_indices`) or stride (`out_strides`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vision_stack.config import ConfigError
from vision_stack.structures import FeatureSpec

STAGE_FIELDS = ("out_features", "out_indices", "out_strides")


class StageSelection(NamedTuple):
    """The same stages, named in three ways."""

    out_features: list[str]
    out_indices: list[int]  # as they were given: -1 stays -1
    out_strides: list[int]


def select_stages(
    stages: Sequence[FeatureSpec],
    out_features: Sequence[str] | None = None,
    out_indices: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
) -> StageSelection:
    """Choose among `stages`, by name, position or stride; by none of them: the last stage.

    A stride means the deepest stage that has it. What is given together must mean the same stages.

    Raises:
        ConfigError: one line with the option, the allowed values and the remedy.
    """
    names = [stage.name for stage in stages]
    chosen: dict[str, list[int]] = {}
    if out_features is not None:
        chosen["out_features"] = _positions_of_names(names, out_features)
    if out_indices is not None:
        chosen["out_indices"] = _positions_of_indices(names, out_indices)
    if not chosen and out_strides is not None:
        chosen["out_strides"] = _positions_of_strides(stages, out_strides)
    (first, positions), *others = chosen.items() or [("", [len(stages) - 1])]
    for other, other_positions in others:
        if positions != other_positions:
            raise ConfigError(
                f"{other}: means {[names[i] for i in other_positions]}, but {first} means "
                f"{[names[i] for i in positions]}; give one of them and leave the other null"
            )
    strides = [stages[i].stride for i in positions]
    if out_strides is not None and list(out_strides) != strides:
        raise ConfigError(
            f"out_strides: {list(out_strides)} was given, but the stages of {first} have {strides}; "
            "give one of them and leave the other null"
        )
    indices = positions if out_indices is None else list(out_indices)
    return StageSelection([names[i] for i in positions], indices, strides)


def _positions_of_names(names: list[str], wanted: Sequence[str]) -> list[int]:
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise ConfigError(f"out_features: expected a list of stage names, got {wanted!r}; the stages are {names}")
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise ConfigError(f"out_features: {unknown or wanted} is not among the stages, which are {names}")
    return _in_order("out_features", wanted, [names.index(name) for name in wanted])


def _positions_of_indices(names: list[str], wanted: Sequence[int]) -> list[int]:
    whole = isinstance(wanted, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in wanted)
    count = len(names)
    if not whole or not wanted:
        raise ConfigError(f"out_indices: expected a list of whole numbers from {-count} to {count - 1}, got {wanted!r}")
    outside = [i for i in wanted if not -count <= i < count]
    if outside:
        raise ConfigError(
            f"out_indices: {outside} is outside {-count} to {count - 1}; there are {count} stages, {names}, "
            "and out_strides chooses among them by stride"
        )
    return _in_order("out_indices", wanted, [i % count for i in wanted])


def _positions_of_strides(stages: Sequence[FeatureSpec], wanted: Sequence[int]) -> list[int]:
    deepest = {stage.stride: i for i, stage in enumerate(stages)}  # a later stage of the same stride wins
    whole = isinstance(wanted, list | tuple) and all(isinstance(s, int) and not isinstance(s, bool) for s in wanted)
    if not whole or not wanted:
        raise ConfigError(f"out_strides: expected a list of strides among {list(deepest)}, got {wanted!r}")
    missing = [stride for stride in wanted if stride not in deepest]
    if missing:
        remedy = "choose among these" if len(deepest) > 1 else "leave out_strides null and add neck=simple_pyramid"
        raise ConfigError(f"out_strides: no stage has stride {missing}; this backbone has {list(deepest)}; {remedy}")
    return _in_order("out_strides", wanted, [deepest[stride] for stride in wanted])


def _in_order(option: str, wanted: Sequence[Any], positions: list[int]) -> list[int]:
    if len(set(positions)) != len(positions):
        raise ConfigError(f"{option}: {list(wanted)} names a stage twice; name each once")
    if positions != sorted(positions):
        ordered = [value for _, value in sorted(zip(positions, wanted, strict=True))]
        raise ConfigError(f"{option}: {list(wanted)} is not in the order of the stages; write {ordered}")
    return positions
