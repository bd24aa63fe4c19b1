"""Names of the decoder in transformers' RT-DETR (`RTDetrForObjectDetection`), and so of the checkpoints published in
its format, in a `VisionModel` with `head=rt_detr`; those of the hybrid encoder are in `hybrid_encoder.py`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.deformable_detr import DECODER_LAYERS
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

_NAMES: Names = (
    *(
        (f"model.decoder_input_proj.{{i}}.{number}.{{p}}", f"head.input_projections.{{i}}.{part}.{{p}}")
        for number, part in enumerate(("conv", "norm"))
    ),
    *DECODER_LAYERS,
    ("model.decoder.query_pos_head.layers.{i}.{p}", "head.query_position.layers.{i}.{p}"),
    ("model.decoder.class_embed.{i}.{p}", "head.class_embed.{i}.{p}"),
    ("model.decoder.bbox_embed.{i}.layers.{j}.{p}", "head.bbox_embed.{i}.layers.{j}.{p}"),
    ("model.enc_output.0.{p}", "head.encoder_output.{p}"),
    ("model.enc_output.1.{p}", "head.encoder_norm.{p}"),
    ("model.enc_score_head.{p}", "head.encoder_class.{p}"),
    ("model.enc_bbox_head.layers.{i}.{p}", "head.encoder_bbox.layers.{i}.{p}"),
    ("model.denoising_class_embed.{p}", "head.denoising_class_embed.{p}"),
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' RT-DETR, without backbone and encoder -> that of the head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    return rename(state, to_ours(_NAMES))


def export_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`, with the names that files have."""
    return rename(state, to_theirs(_NAMES))
