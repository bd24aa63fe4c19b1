"""Plain transformers of timm's that leave their last blocks to the head, which adds queries to the tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.structures import Tail, TailSpec


def check_tail(tail: TailSpec, num_blocks: int) -> None:
    """ConfigError unless a block is left to the backbone itself."""
    if tail.num_blocks >= num_blocks:
        most = num_blocks - 1
        raise ConfigError(
            f"head.num_blocks: {tail.num_blocks}, but the backbone has {num_blocks} blocks; give at most {most}"
        )


def reserve_queries(net: nn.Module, tail: TailSpec) -> None:
    """Rotary positions belong to the patches alone: queries of the head count as further tokens before them."""
    for block in net.get_submodule("blocks")[-tail.num_blocks :]:  # type: ignore[index]
        if hasattr(block.attn, "num_prefix_tokens"):
            block.attn.num_prefix_tokens += tail.num_queries


def run_to_tail(
    net: Any, tokens: Tensor, options: dict[str, Tensor], tail: TailSpec, patch: int, size: tuple[int, int]
) -> tuple[Tensor, Tail]:
    """Run all blocks but the last.

    Args:
        net: timm's `VisionTransformer` or `Eva`.
        tokens: [B, P + h * w, C], the embedded patches of an image of `size` (height, width).
        options: what all blocks are given beside the tokens, such as rotary positions.

    Returns:
        tokens after them, and the blocks that are left.
    """
    count = len(net.blocks) - tail.num_blocks
    for block in net.blocks[:count]:
        tokens = block(tokens, **options)
    left = tuple(partial(_run, block, options) for block in net.blocks[count:])
    grid = (size[0] // patch, size[1] // patch)
    return tokens, Tail(left, net.norm, net.num_prefix_tokens, grid, patch)


def _run(block: nn.Module, options: dict[str, Tensor], tokens: Tensor, mask: Tensor | None) -> Tensor:
    return block(tokens, attn_mask=mask, **options)
