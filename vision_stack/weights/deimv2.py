"""Names of the decoder in transformers' DEIMv2 (`Deimv2ForObjectDetection`) in a `VisionModel` with `head=deimv2`.

Those of the necks are in `hybrid_encoder.py`. Files have the names that a model in memory has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from vision_stack.weights.d_fine import CONSTANTS, EDGES, GATES, with_constants
from vision_stack.weights.deformable_detr import DECODER_LAYERS, PREDICTOR, one_of_each_predictor
from vision_stack.weights.renaming import Names, Rules, rename, to_ours, to_theirs
from vision_stack.weights.rt_detr import SELECTION

_LAYER, _OURS = "model.decoder.layers.{i}.", "head.layers.{i}."
_PLAIN: Names = ((f"{_LAYER}encoder_attn_layer_norm.{{p}}", f"{_OURS}merge.norm.{{p}}"),)  # without gates
_NAMES: Names = (
    *(
        (f"model.decoder_input_proj.{{i}}.{part}.{{p}}", f"head.input_projections.{{i}}.{part}.{{p}}")
        for part in ("conv", "norm")
    ),
    (f"{_LAYER}self_attn.o_proj.{{p}}", f"{_OURS}self_attn.out_proj.{{p}}"),
    *(
        (f"{_LAYER}mlp.{theirs}_proj.{{p}}", f"{_OURS}ffn.{ours}.{{p}}")
        for theirs, ours in (("gate", "gate"), ("up", "value"), ("down", "output"))
    ),
    *EDGES,
    *SELECTION,
)


def convert_decoder(state: Mapping[str, Tensor], *, share_bbox_head: bool) -> dict[str, Tensor]:
    """State dict of transformers' DEIMv2, without backbone and encoder -> that of the head.

    Args:
        share_bbox_head: of its config.json; a state dict may have what is shared more than once.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    copies: Rules = ((rf"{re.escape(PREDICTOR)}bbox_embed\.[1-9].*", None),) if share_bbox_head else ()
    names = (*_NAMES, *_PLAIN, *GATES, *DECODER_LAYERS)
    return rename(one_of_each_predictor(state), (*copies, *CONSTANTS, *to_ours(names)))


def export_decoder(state: Mapping[str, Tensor], num_points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`, with the constants.

    Args:
        num_points, reg_scale: of the head's config.
    """
    gated = any(".merge.gates." in key for key in state)
    names = (*_NAMES, *(GATES if gated else _PLAIN), *DECODER_LAYERS)
    return with_constants(rename(state, to_theirs(names)), num_points, reg_scale)
