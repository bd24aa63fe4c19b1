"""Attention probabilities of timm's modules, which keep none: recorded while a call asks for them, and only then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def recording(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that gets what the softmax of each module gives, in the order of computation: [B, heads, N, N].

    Meanwhile the modules, timm's, compute their attention step by step; torch's fused attention never holds the
    probabilities. After dropout, which is off in eval mode, as in transformers.
    """
    found: list[Tensor] = []
    handles = []
    fused = [getattr(module, "fused_attn", None) for module in modules]
    for module in modules:
        dropout: Any = module.attn_drop  # what every attention of timm passes its probabilities through
        handles.append(module.register_forward_pre_hook(_step_by_step))
        handles.append(dropout.register_forward_hook(lambda _module, _inputs, output: found.append(output)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for module, value in zip(modules, fused, strict=True):
            if value is not None:
                module.fused_attn = value


def _step_by_step(module: Any, _inputs: Any) -> None:
    if hasattr(module, "fused_attn"):
        module.fused_attn = False
