"""Gradient checkpointing (Chen et al. 2016): activations inside blocks are recomputed in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(module: nn.Module, parts: Sequence[str]) -> list[str]:
    """Checkpoint the blocks of the named parts from now on; parameters and their names stay as they are.

    The blocks of a part are the composite members of its outermost lists of modules, or else the part itself if it is
    composite. Gradients and batch norm statistics are the same as without; without gradients nothing is recomputed.

    Returns:
        the names of the blocks.
    """
    blocks = [name for part in parts for name in _blocks(module.get_submodule(part), part)]
    for name in blocks:
        block = module.get_submodule(name)
        if not isinstance(block.forward, functools.partial):  # asked for twice
            block.forward = functools.partial(_checkpointed, block, block.forward)
    return blocks


def _blocks(part: nn.Module, name: str) -> list[str]:
    children = {f"{name}.{n}": child for n, child in part.named_children()}
    lists = {name: part} if _is_list(part) else {n: child for n, child in children.items() if _is_list(child)}
    members = [f"{at}.{n}" for at, m in lists.items() for n, child in m.named_children() if list(child.children())]
    return members or ([name] if children else [])


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        # A list of branches is replaced member by member in some networks, which must leave the saved one alone.
        return forward(*(list(a) if isinstance(a, list) else a for a in args), **kwargs)

    return checkpoint(run, *args, use_reentrant=False, context_fn=functools.partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _StatisticsKept(block)


class _StatisticsKept:
    """Batch norms that do not count their batch: it has been counted in the forward pass."""

    def __init__(self, block: nn.Module) -> None:
        norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
        self.norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]

    def __enter__(self) -> None:
        for norm, _, _ in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: Any) -> None:
        for norm, momentum, num_batches_tracked in self.norms:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
