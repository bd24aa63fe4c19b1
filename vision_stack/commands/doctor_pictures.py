"""Pictures of findings: the objects in question, cut out of their image, or two images beside each other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vision_stack.data.annotations import Annotation
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.checks.diagnosis import Exhibit, Split, table_of
from vision_stack.data.checks.issues import DataError
from vision_stack.data.images import read_image
from vision_stack.ops.image import resized_size
from vision_stack.structures import Instances
from vision_stack.visualization.overlay import draw_image, draw_instances, side_by_side

_SIDE = 640  # longest side of a picture in pixels
_AROUND, _LEAST = 1.0, 128  # what is shown around the objects, in their own size, and pixels of the image at least
_QUALITY = 80


def picture_of(exhibit: Exhibit, split: Split | None) -> bytes | None:
    """A JPEG, or None where the file can no longer be read.

    Args:
        split: that the exhibit's rows belong to; None where it has none.
    """
    record = exhibit.record
    try:
        if exhibit.other is not None:
            first, second = _whole(record), _whole(exhibit.other)
            return _jpeg(side_by_side({"first": first, "second": second.resize(first.size)}))
        table = None if split is None else table_of(split)
        if split is None or table is None or not exhibit.rows:
            return _jpeg(_whole(record))
        annotations = [table.annotation(row, record.height, record.width) for row in exhibit.rows]
        return _jpeg(_objects(record, annotations, split.categories))
    except DataError:  # damaged or removed since it was checked
        return None


def _whole(record: Any) -> Image.Image:
    image = Image.fromarray(read_image(record.path, apply_exif=record.apply_exif))
    image.thumbnail((_SIDE, _SIDE))
    return draw_image(np.asarray(image))


def _objects(record: Any, annotations: Sequence[Annotation], categories: Any) -> Image.Image:
    """The objects where they are, with some of the image around them."""
    boxes = np.array([annotation.box for annotation in annotations])
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    margins = [max(_AROUND * (high - low), (_LEAST - (high - low)) / 2) for low, high in ((x0, x1), (y0, y1))]
    left, top = (int(max(low - margin, 0)) for low, margin in zip((x0, y0), margins, strict=True))
    right = int(min(np.ceil(x1 + margins[0]), record.width))
    bottom = int(min(np.ceil(y1 + margins[1]), record.height))
    size = bottom - top, right - left
    if max(size) > _SIDE:
        size = resized_size(*size, _SIDE, _SIDE)
    affine = GeometricTransform((left, top, right, bottom), size)
    pixels = torch.from_numpy(read_image(record.path, apply_exif=record.apply_exif)).permute(2, 0, 1)
    image = affine.image(pixels).permute(1, 2, 0).numpy()
    masks = [affine.segmentation(a.segmentation) if a.segmentation else np.zeros(size, bool) for a in annotations]
    shown = Instances(
        torch.from_numpy(affine.boxes(boxes.tolist())).float(),
        torch.tensor([annotation.label for annotation in annotations]),
        torch.ones(len(annotations)),
        torch.from_numpy(np.stack(masks)),
    )
    return draw_instances(image, shown, categories)


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.thumbnail((2 * _SIDE, 2 * _SIDE))
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
