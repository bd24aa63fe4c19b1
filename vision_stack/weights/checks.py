"""Whether tensors by name are weights, and those of a certain model; `faults_of` says in which file they are not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError

COPIES, SPARE_BYTES = 8, 2**30  # the most memory that weights may take: so many times their file, plus a constant
_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)


@contextmanager
def faults_of(source: str | Path) -> Iterator[None]:
    """ConfigErrors in the block name the source."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def check_tensors(state: Any) -> None:
    """ConfigError unless `state` is a state dict of dense tensors of numbers, all of which are in the file."""
    if not isinstance(state, Mapping) or not state:
        raise ConfigError("holds no tensors by name; give a state dict")
    for name, value in state.items():
        kind = _oddity(value) if isinstance(name, str) else f"named by a {type(name).__name__}"
        if kind:
            shown = f"{name:.100}" if isinstance(name, str) else "a tensor"
            raise ConfigError(f"{shown} is {kind}; expected a state dict of dense tensors of numbers")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    claimed, stored = _bytes(state.values()), sum(storages.values())
    if claimed > COPIES * stored + SPARE_BYTES:
        raise ConfigError(f"tensors of {_mib(claimed)} share {_mib(stored)} of values; give a state dict")


def check_size(model: Iterable[Tensor], state: Iterable[Tensor]) -> None:
    """ConfigError if the tensors of a model would take far more memory than its weights do."""
    needed, given = _bytes(model), _bytes(state)
    if needed > COPIES * given + SPARE_BYTES:
        raise ConfigError(f"weights do not fit the config: they are {_mib(given)}, its model would take {_mib(needed)}")


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """ConfigError with the first keys that differ, unless names, shapes and kinds of numbers agree."""
    problems = [f"missing {k}" for k in expected if k not in state]
    problems += [f"unexpected {k:.100}" for k in state if k not in expected]
    problems += [f"{k} has {misfit}" for k, v in expected.items() if k in state and (misfit := misfit_of(state[k], v))]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"weights do not fit the config: {'; '.join(problems[:3])}{more}")


def misfit_of(tensor: Tensor, expected: Tensor) -> str:
    """What keeps a tensor from taking the place of another: "shape [3], not [4]"; nothing if it can."""
    if tensor.shape != expected.shape:
        return f"shape {list(tensor.shape)}, not {list(expected.shape)}"
    if tensor.is_floating_point() != expected.is_floating_point():
        return f"{_dtype(tensor)} values, not {_dtype(expected)}"
    return ""


def check_finite(state: Mapping[str, Tensor]) -> None:
    """ConfigError with the first tensor that has values that are NaN or infinite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"{name} has values that are NaN or infinite; the file is damaged, or its training diverged; "
                "give another checkpoint"
            )


def _oddity(value: Any) -> str:
    """What keeps a value from being a tensor of weights, as in "x is a str"; nothing if it is one."""
    if value is None:
        return "None"
    if type(value) not in (Tensor, nn.Parameter):
        return f"of type {type(value).__name__}"
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else f"of layout {str(value.layout).removeprefix('torch.')}"
    if value.device.type != "cpu":
        return f"on the {value.device.type} device, without values"
    return "" if value.dtype in _DTYPES else f"of type {_dtype(value)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
