"""Plain transformers most of whose blocks attend within windows of an image, as LW-DETR and RF-DETR have them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from vision_stack.backbones.families.vit import PlainConfig, ViTBackbone


class WindowedBackbone(ViTBackbone):
    """Every window is a sequence of its own, with a copy of the class token if there is one, through all blocks.

    Where a block attends to the whole image, the windows of an image follow one another in one sequence: all else in
    a block sees one token at a time.
    """

    def __init__(self, config: PlainConfig, side: int, windowed: Collection[int]) -> None:
        """`side`: windows along a side of an image; `windowed`: the numbers of the blocks that attend within them."""
        super().__init__(config)
        self.side, self.windowed = side, frozenset(windowed)
        self.multiple = config.patch_size * side  # windows of equal size

    def run(self, x: Tensor) -> Iterator[Tensor]:
        tokens, _ = self.embed(x)
        prefix = self.net.num_prefix_tokens
        rows, columns = (length // self.multiple for length in x.shape[-2:])  # of a window
        cells = tokens[:, prefix:].unflatten(1, (self.side, rows, self.side, columns))
        windows = cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, W * W, h * w, C]
        first = tokens[:, None, :prefix].expand(-1, windows.shape[1], -1, -1)
        tokens = torch.cat([first, windows], dim=2)
        yield tokens
        for number, block in enumerate(self.net.blocks):
            sequences = tokens.flatten(0, 1) if number in self.windowed else tokens.flatten(1, 2)
            tokens = block(sequences).view_as(tokens)
            yield tokens

    def tokens(self, x: Tensor) -> Any:
        """None: the tokens of windows are not those of an image, row by row."""
        return None

    def to_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = (length // self.multiple for length in size)
        cells = x[:, :, self.net.num_prefix_tokens :].unflatten(2, (rows, columns)).unflatten(1, (self.side, self.side))
        return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
