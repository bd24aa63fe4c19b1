"""No neck: the head reads the backbone's own maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vision_stack.config import register
from vision_stack.structures import Features, FeatureSpec, NeckConfig


@register("neck", "none")
@dataclass(frozen=True, kw_only=True)
class NoNeckConfig(NeckConfig):
    """Passes the backbone's maps on as they are."""

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> NoNeck:
        return NoNeck(in_specs)


class NoNeck(nn.Module):
    """Gives what it is given."""

    def __init__(self, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        self.out_specs = in_specs

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs` -> the same."""
        return tuple(maps)
