"""DINOv3's rotary positions (Siméoni et al. 2025) in exported models."""

from __future__ import annotations

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn


class AnyGrid(RotaryEmbeddingDinoV3):
    """timm's positions, of grids whose size is a symbol, too, as while a model is exported for images of any size."""

    def _create_embed(self, feat_shape: list[int], no_aug: bool = False) -> Tensor:
        if not any(isinstance(length, torch.SymInt) for length in feat_shape):
            embed: Tensor = super()._create_embed(feat_shape, no_aug)
            return embed
        axes = [(torch.arange(length) + 0.5 + self.grid_offset) / length for length in feat_shape]
        places = 2 * torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 1) - 1
        return torch.cat(self._get_pos_embed_from_coords(places), dim=-1)


def take_any_grid(net: nn.Module) -> None:
    """Let the network's rotary positions be exported."""
    for module in net.modules():
        if type(module) is RotaryEmbeddingDinoV3:
            module.__class__ = AnyGrid
