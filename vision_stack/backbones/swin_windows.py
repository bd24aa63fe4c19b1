"""timm's Swin on maps that windows do not divide: pad first, then shift, as the published detection models do.

timm shifts first and pads behind the rows that were shifted around, so that its mask of the wrapped rows lies beside
them and the top of the image attends to the bottom. Where windows divide the map (224 pixels, stride 4 to 32, window
7) both are the same, so ImageNet accuracy does not tell.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn


class _PadThenShift:
    """Mixed into a timm block: hands whole windows to the block's own attention, which then has nothing to pad."""

    window_size: tuple[int, int]

    def _attn(self, x: Tensor) -> Tensor:
        """[B, H, W, C], normalised -> the same shape."""
        height, width = x.shape[1:3]
        below, right = -height % self.window_size[0], -width % self.window_size[1]
        padded = F.pad(x, (0, 0, 0, right, 0, below))
        return super()._attn(padded)[:, :height, :width]  # type: ignore[misc]


class SwinBlock(_PadThenShift, SwinTransformerBlock):
    """timm's block of Swin (Liu et al. 2021, Sec. 3.2), with torch's fused attention, which timm leaves off."""

    attn: Any

    def _attn(self, x: Tensor) -> Tensor:
        # On CPUs the fused kernel has no gradient of the bias: in training torch would take a slower way round.
        self.attn.fused_attn = x.device.type != "cpu" or not torch.is_grad_enabled()
        return super()._attn(x)


class SwinV2Block(_PadThenShift, SwinTransformerV2Block):
    """timm's block of Swin V2 (Liu et al. 2022)."""


def pad_before_shift(net: nn.Module) -> nn.Module:
    """Make every Swin block in `net` one that pads first; parameters and their names stay as they are."""
    for module in net.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = SwinBlock
        elif type(module) is SwinTransformerV2Block:
            module.__class__ = SwinV2Block
    return net
