"""Convolution, norm and activation, as the necks use them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from torch import nn

Norm = Literal["none", "group", "batch"]


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: Norm,
    *,
    relu: bool,
    bias: bool | None = None,
    stride: int = 1,
) -> nn.Sequential:
    """Convolution `conv`, then `norm`, then ReLU. Unless `bias` says, it has a bias where no norm follows.

    H x W cells become ceil(H / stride) x ceil(W / stride).
    GroupNorm has 32 groups, or as many of them as divide the channels (64 -> 32 groups, 48 -> 16).
    Initialised as detectron2's c2_xavier_fill, which FPN and MaskFormer use.
    """
    has_bias = norm == "none" if bias is None else bias
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=has_bias)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=init_conv(conv))
    if norm == "group":
        layers["norm"] = nn.GroupNorm(math.gcd(32, out_channels), out_channels)
    elif norm == "batch":
        layers["norm"] = nn.BatchNorm2d(out_channels)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    activation: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution `conv` without bias, `norm` and, where given, `act`, as the DETRs that run in real time have them.

    H x W cells become ceil(H / stride) x ceil(W / stride). Initialised as PyTorch does.
    """
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=norm(out_channels))
    if activation is not None:
        layers["act"] = activation()
    return nn.Sequential(layers)


def init_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """Kaiming-uniform with unit gain (detectron2's c2_xavier_fill) and zero bias."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
