"""Hidden states of timm's models: the maps of all stages, whichever were selected when the extractor was built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models._features import FeatureGetterNet, FeatureListNet
from torch import Tensor


def every_stage(net: Any, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """Run timm's extractor and keep the map of each of its first stages.

    Args:
        net: an extractor that was built up to the last of `names` at least.
        names: timm's names of the first stages, in order.
        x: padded pixels [B, 3, H, W].

    Raises:
        ValueError: an extractor of another kind.
    """
    if isinstance(net, FeatureGetterNet):
        options = {"norm": False, "output_fmt": net.output_fmt, "intermediates_only": True}
        model: Any = net.model
        return list(model.forward_intermediates(x, indices=list(range(len(names))), **options))
    if not isinstance(net, FeatureListNet):
        raise ValueError("output_hidden_states: this model gives none; choose all of its stages with out_indices")
    maps = {}
    for name, module in net.items():
        x = module(x)
        maps[name] = x
    return [maps[name.replace(".", "_")] for name in names]
