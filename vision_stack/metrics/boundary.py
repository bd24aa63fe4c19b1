"""Boundary IoU (Cheng et al. 2021): how well the outlines of masks agree, whatever the objects' size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

DILATION = 0.02  # of the image's diagonal: the width of the band along the outline


def boundary(mask: NDArray[np.bool_], dilation: float = DILATION) -> NDArray[np.bool_]:
    """The pixels of a mask [H, W] within `dilation` times the diagonal of its outline (in the maximum norm).

    The image's border counts as outline, as in the paper's code: outside of the image there is nothing.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros_like(mask)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # nothing outside of it changes anything
    reach = max(1, round(dilation * float(np.hypot(height, width))))
    band = np.zeros_like(mask)
    band[box] = mask[box] & ~_erode(_erode(mask[box], reach).T, reach).T
    return band


def _erode(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Pixels whose `reach` neighbours to the left and right are all set, and inside of the array."""
    window = 2 * reach + 1
    sums = np.cumsum(np.pad(mask, ((0, 0), (reach + 1, reach))), axis=1, dtype=np.int32)
    return sums[:, window:] - sums[:, :-window] == window


class BoundaryEval(COCOeval):
    """COCO's evaluation with min(mask IoU, boundary IoU) in place of the mask IoU (Sec. 5 of the paper).

    A crowd region only absorbs detections, by the share of their mask that is inside it, as in the paper's code:
    the outlines of single objects have nothing to agree with in a crowd.
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """IoUs of one image and class, [detections, objects], best detections first."""
        mask_iou = super().computeIoU(imgId, catId)
        if len(mask_iou) == 0:
            return mask_iou
        found = self._dts[imgId, catId]
        order = np.argsort([-record["score"] for record in found], kind="mergesort")
        kept = [found[i] for i in order[: self.params.maxDets[-1]]]
        truth = self._gts[imgId, catId]
        crowd = [int(annotation["iscrowd"]) for annotation in truth]
        outlines = [[_outline(record) for record in records] for records in (kept, truth)]
        return np.where(crowd, mask_iou, np.minimum(mask_iou, coco_mask.iou(*outlines, crowd)))


def _outline(record: dict[str, Any]) -> Any:
    """RLE of the boundary of a record, which keeps it."""
    if "boundary" not in record:
        mask = coco_mask.decode(record["segmentation"]).view(bool)
        record["boundary"] = coco_mask.encode(np.asfortranarray(boundary(mask)).view(np.uint8))
    return record["boundary"]
