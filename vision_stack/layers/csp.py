"""Cross-stage partial blocks, which fuse maps in the DETRs that run in real time: [B, C_in, H, W] -> [B, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.layers.conv import conv_norm_act


class RepVGG(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, each with a BatchNorm, then SiLU (Ding et al. 2021, Sec. 3.3).

    In eval mode the two are one 3x3 convolution, whose weights are made on each call: a map has many more cells.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = conv_norm_act(channels, channels, 3)
        self.point = conv_norm_act(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.silu(self.wide(x) + self.point(x))
        (weight, bias), (center, shift) = _folded(self.wide), _folded(self.point)
        return F.silu(F.conv2d(x, weight + F.pad(center, (1, 1, 1, 1)), bias + shift, padding=1))


def _folded(layers: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the statistics of its BatchNorm."""
    conv: Any = layers.get_submodule("conv")
    norm: Any = layers.get_submodule("norm")
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class CSPRep(nn.Module):
    """RT-DETR's fusion block (Zhao et al. 2023, Sec. 4.2): RepVGG blocks beside a 1x1 convolution, summed.

    Args:
        expansion: width inside the block, as a factor of `out_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, expansion: float = 1.0) -> None:
        super().__init__()
        width = int(out_channels * expansion)
        self.main = conv_norm_act(in_channels, width, 1, activation=nn.SiLU)
        self.blocks = nn.Sequential(*(RepVGG(width) for _ in range(num_blocks)))
        self.shortcut = conv_norm_act(in_channels, width, 1, activation=nn.SiLU)
        same = width == out_channels
        self.output = nn.Identity() if same else conv_norm_act(width, out_channels, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.blocks(self.main(x)) + self.shortcut(x))


class RepELAN(nn.Module):
    """D-FINE's fusion block, RepNCSPELAN4: YOLOv9's GELAN (Wang et al. 2024, Sec. 4.2) of CSPRep blocks.

    Of twice `out_channels`, half go through two CSPRep blocks in a row, each followed by a 3x3 convolution; both halves
    and what either branch gives are merged.

    Args:
        expansion: twice the width of the CSPRep blocks, as a factor of `out_channels`.
        convs: False leaves out the 3x3 convolutions (DEIMv2's RepNCSPELAN5).
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, expansion: float = 1.0, *, convs: bool = True
    ) -> None:
        super().__init__()
        width = round(out_channels * expansion // 2)
        self.split = conv_norm_act(in_channels, 2 * out_channels, 1, activation=nn.SiLU)
        self.branches = nn.ModuleList()
        for channels in (out_channels, width):
            branch = nn.Sequential(CSPRep(channels, width, num_blocks))
            if convs:
                branch.append(conv_norm_act(width, width, 3, activation=nn.SiLU))
            self.branches.append(branch)
        self.merge = conv_norm_act(2 * out_channels + 2 * width, out_channels, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, dim=1))
        for branch in self.branches:
            parts.append(branch(parts[-1]))
        return self.merge(torch.cat(parts, dim=1))


class C2f(nn.Module):
    """YOLOv8's block, as LW-DETR's projector has it (Chen et al. 2024, Sec. 3): the outputs of all steps are merged.

    Args:
        expansion: width inside the block, as a factor of `out_channels`.
        norm: makes the norm of so many channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, expansion: float, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        width = int(out_channels * expansion)

        def conv(inputs: int, outputs: int, kernel_size: int) -> nn.Sequential:
            return conv_norm_act(inputs, outputs, kernel_size, norm=norm, activation=nn.SiLU)

        self.split = conv(in_channels, 2 * width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(width, width, 3), conv(width, width, 3)) for _ in range(num_blocks)
        )
        self.merge = conv((2 + num_blocks) * width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.merge(torch.cat(parts, dim=1))
