"""Mean IoU and accuracies of semantic segmentation, from one confusion matrix (Long et al. 2015, Sec. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from vision_stack.metrics.base import Evaluator, Report, class_names, three_digits
from vision_stack.metrics.confusion import Confusion
from vision_stack.metrics.panoptic import png_name
from vision_stack.metrics.table import score_table
from vision_stack.ops.label_maps import class_png
from vision_stack.structures import Category, SemanticSegmentation


class _Image(NamedTuple):
    """What is kept of an image."""

    confusion: Confusion
    png: bytes  # of category ids


def confusion(truth: NDArray[np.integer], found: NDArray[np.integer], num_classes: int) -> Confusion:
    """Counts pixels of two label maps [H, W]. Where the truth is negative nothing counts.

    Raises:
        ValueError: the two maps differ in size.
    """
    if truth.shape != found.shape:
        raise ValueError(f"the label map's size is {found.shape}, the truth's is {truth.shape}")
    known = truth >= 0
    pairs = truth[known].astype(np.int64) * num_classes + found[known]
    if num_classes**2 > truth.size:  # sorting the pixels beats counting into a table that is larger than the image
        cells, pixels = np.unique(pairs, return_counts=True)
    else:
        table = np.bincount(pairs)
        cells = np.flatnonzero(table)
        pixels = table[cells]
    return Confusion(cells // num_classes, cells % num_classes, pixels)


class SemanticEvaluator(Evaluator):
    """mIoU, accuracies and IoU by class over a data set.

    Args:
        ground_truth: the label map of each image by its id, negative where it says nothing; read when the image is fed.
        categories: of the model, by label.
    """

    score_name = "mIoU"
    class_key = "IoU"

    def __init__(self, ground_truth: Mapping[int, SemanticSegmentation], categories: Sequence[Category]) -> None:
        super().__init__()
        self.ground_truth = ground_truth
        self.categories = tuple(categories)
        _png_values(self.categories)  # raises now rather than after an epoch

    def update(self, image_id: int, prediction: SemanticSegmentation) -> None:
        """Add the label map of an image.

        Raises:
            ValueError: the ground truth has no such image, or of another size.
        """
        if image_id not in self.ground_truth:
            raise ValueError(f"image id {image_id} is not in the ground truth; evaluate on the data it belongs to")
        truth = self.ground_truth[image_id].label_map.numpy()
        found = prediction.label_map.cpu().numpy()
        png = encode_semantic(prediction, self.categories)
        self._kept[image_id] = _Image(confusion(truth, found, len(self.categories)), png)

    def compute(self, *, only_updated: bool = False) -> dict[str, Any]:
        """{"mIoU", "pixel_accuracy", "mean_accuracy", "per_class": {name: {"IoU", "accuracy"}}}.

        Means are over the classes that the truth has. Images that have not been fed count for nothing either way.
        """
        count = len(self.categories)
        hits, true, found = (np.zeros(count, np.int64) for _ in range(3))
        for kept in self._kept.values():
            cells = kept.confusion
            hit = cells.true == cells.found
            np.add.at(true, cells.true, cells.counts)
            np.add.at(found, cells.found, cells.counts)
            np.add.at(hits, cells.true[hit], cells.counts[hit])
        union = true + found - hits
        iou = [h / u if t else None for h, u, t in zip(*(x.tolist() for x in (hits, union, true)), strict=True)]
        accuracy = [h / t if t else None for h, t in zip(hits.tolist(), true.tolist(), strict=True)]
        names = class_names([c.name for c in self.categories], [c.id for c in self.categories])
        return {
            "mIoU": _mean(iou),
            "pixel_accuracy": float(hits.sum() / true.sum()) if true.sum() else None,
            "mean_accuracy": _mean(accuracy),
            "per_class": {name: {"IoU": i, "accuracy": a} for name, i, a in zip(names, iou, accuracy, strict=True)},
        }

    def report(self, metrics: Mapping[str, Any]) -> Report:
        pixels = Confusion.sum((kept.confusion for kept in self._kept.values()), len(self.categories))
        return super().report(metrics)._replace(score_name=self.class_key, confusion=pixels)

    def results(self) -> dict[str, Any]:
        """{"annotations": [{image_id, file_name of the PNG}], "categories": [{id, name}]}."""
        annotations = [{"image_id": image_id, "file_name": png_name(image_id)} for image_id in sorted(self._kept)]
        return {"annotations": annotations, "categories": semantic_categories(self.categories)}

    def files(self) -> dict[str, bytes]:
        return {png_name(image_id): kept.png for image_id, kept in self._kept.items()}

    def scalars(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        return {name: metrics[name] for name in ("mIoU", "pixel_accuracy", "mean_accuracy")}

    def one_line(self, metrics: Mapping[str, Any]) -> str:
        return f"mIoU {three_digits(metrics['mIoU'])}, pixel accuracy {three_digits(metrics['pixel_accuracy'])}"

    def table(self, metrics: Mapping[str, Any]) -> RenderableType:
        summary = {"mean": {"IoU": metrics["mIoU"], "accuracy": metrics["mean_accuracy"]}}
        summary["pixels"] = {"IoU": None, "accuracy": metrics["pixel_accuracy"]}
        return score_table(summary, metrics["per_class"], ("IoU", "accuracy"))


def encode_semantic(found: SemanticSegmentation, categories: Sequence[Category]) -> bytes:
    """A PNG of the data set's own category ids, in one channel of 8 or 16 bits."""
    return class_png(_png_values(categories)[found.label_map.cpu().numpy()])


def semantic_categories(categories: Sequence[Category]) -> list[dict[str, Any]]:
    """What the values of label maps stand for, as a class table."""
    return [{"id": c.id, "name": c.name} for c in categories]


def _png_values(categories: Sequence[Category]) -> NDArray[np.int64]:
    """What the PNGs of predictions hold for each label: the data set's own category ids.

    Raises:
        ValueError: an id that no PNG can hold.
    """
    ids = np.array([category.id for category in categories])
    if ids.min() < 0 or ids.max() > 65535:
        wrong = ids[(ids < 0) | (ids > 65535)][0]
        raise ValueError(f"categories: id {wrong} is not a value of a label map; use ids from 0 to 65535")
    return ids


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
