"""Names of the decoder in transformers' D-FINE (`DFineForObjectDetection`), and so of the checkpoints published in its
format, in a `VisionModel` with `head=d_fine`; those of the hybrid encoder are in `hybrid_encoder.py`.

Those of files come first; a model in memory has other names for a few of them, in newer versions of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vision_stack.ops.box_edges import LARGEST_MOVE
from vision_stack.weights.deformable_detr import DECODER_LAYERS, PREDICTOR, one_of_each_predictor
from vision_stack.weights.renaming import Names, Rules, rename, to_ours, to_theirs
from vision_stack.weights.rt_detr import SELECTION

_LAYER, _OURS = "model.decoder.layers.{i}.", "head.layers.{i}."
EDGES: Names = (  # DEIMv2's, too
    ("model.decoder.pre_bbox_head.layers.{i}.{p}", "head.first_bbox.layers.{i}.{p}"),
    (f"{PREDICTOR}bbox_embed.{{i}}.layers.{{j}}.{{p}}", "head.edge_embed.{i}.layers.{j}.{p}"),
    ("model.decoder.lqe_layers.{i}.reg_conf.layers.{j}.{p}", "head.quality.{i}.layers.{j}.{p}"),
)
GATES: Names = (
    (f"{_LAYER}gateway.gate.{{p}}", f"{_OURS}merge.gates.{{p}}"),
    (f"{_LAYER}gateway.norm.{{p}}", f"{_OURS}merge.norm.{{p}}"),
)
CONSTANTS: Rules = (  # of the configuration
    (r"model\.decoder\.(up|reg_scale)", None),
    (r"model\.decoder\.layers\.\d+\.encoder_attn\.num_points_scale", None),
)
_NAMES: Names = (
    *SELECTION,
    *DECODER_LAYERS,
    *((f"{_LAYER}mlp.layers.{n}.{{p}}", f"{_OURS}ffn.linear{n + 1}.{{p}}") for n in range(2)),
    *EDGES,
    *GATES,
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' D-FINE, without backbone and encoder -> that of the head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    return rename(one_of_each_predictor(state), (*CONSTANTS, *to_ours(_NAMES)))


def export_decoder(state: Mapping[str, Tensor], num_points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`, with the names that files have, and with the constants.

    Args:
        num_points, reg_scale: of the head's config.
    """
    return with_constants(rename(state, to_theirs(_NAMES)), num_points, reg_scale)


def with_constants(theirs: Mapping[str, Tensor], num_points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """Their state dict with what transformers keeps in it of the configuration."""
    like = theirs["model.enc_score_head.bias"]
    steps = torch.cat([like.new_full((count,), 1 / count) for count in num_points])
    offsets = "sampling_offsets.weight"
    scales = {key.replace(offsets, "num_points_scale"): steps.clone() for key in theirs if key.endswith(offsets)}
    scalars = {"up": LARGEST_MOVE, "reg_scale": reg_scale}
    return {**theirs, **scales, **{f"model.decoder.{name}": like.new_tensor([x]) for name, x in scalars.items()}}
