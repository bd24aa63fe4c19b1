"""The images of a batch of outputs, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vision_stack.outputs import AnyMaskOutputs
from vision_stack.structures import ImageInfo


def each_image(outputs: AnyMaskOutputs, infos: Sequence[ImageInfo]) -> Iterator[tuple[int, ImageInfo]]:
    """Position in the batch and info of every image.

    Raises:
        ValueError: there is not one info for each image.
    """
    if len(infos) != len(outputs.pred_logits):
        raise ValueError(f"{len(infos)} infos for {len(outputs.pred_logits)} images; give one ImageInfo per image")
    return enumerate(infos)
