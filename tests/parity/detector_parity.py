"""What the comparisons with torchvision's detectors share: maps of two images of a batch, made of noise."""

from collections.abc import Sequence

import torch

from vision_stack.structures import FeatureSpec

BATCH = (128, 160)  # height, width
SIZES = ((120, 160), (128, 150))  # of its two images


def maps(specs: Sequence[FeatureSpec], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(2, s.channels, *(-(-edge // s.stride) for edge in BATCH), generator=generator, dtype=dtype)
        for s in specs
    )
