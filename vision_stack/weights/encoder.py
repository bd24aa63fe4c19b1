"""The backbone's part of a state dict of transformers' MaskFormer or Mask2Former."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

ENCODER = "model.pixel_level_module.encoder."  # of the backbone's names
UNUSED = (r"criterion\.empty_weight", None)  # the weights of the classes in the loss


def split_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of transformers' MaskFormer or Mask2Former -> that of its backbone, without prefix, and the rest.

    The backbone's names become those of transformers' backbone classes, also where MaskFormer's Swin has its own.
    """
    encoder = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
    rest = {key: value for key, value in state.items() if not key.startswith(ENCODER)}
    return {_plain(key): value for key, value in encoder.items()}, rest


def _plain(key: str) -> str:
    norm = re.fullmatch(r"hidden_states_norms\.(\d+)\.(\w+)", key)
    return f"hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}" if norm else key.removeprefix("model.")
