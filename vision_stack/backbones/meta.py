"""Building on the meta device, where tensors have shapes and no numbers: names, channels and strides at no cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_})  # as weights are initialised


class _NothingDrawn(TorchFunctionMode):
    """Initialisation leaves meta tensors alone: most of the time of building on meta goes into working out shapes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _DRAWS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules are built without memory, arithmetic and random numbers."""
    with torch.device("meta"), _NothingDrawn():
        yield
