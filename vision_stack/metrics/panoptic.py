"""Panoptic quality (Kirillov et al. 2019) by panopticapi's definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from vision_stack.metrics.base import Evaluator, Report, class_names, three_digits
from vision_stack.metrics.confusion import Confusion
from vision_stack.metrics.table import score_table
from vision_stack.ops.label_maps import segment_png
from vision_stack.structures import Category, PanopticSegmentation


class Truth(Protocol):
    """The annotation of an image: its segments, and which of them are crowds [N] bool."""

    @property
    def segmentation(self) -> PanopticSegmentation: ...
    @property
    def is_crowd(self) -> NDArray[np.bool_]: ...


class _Image(NamedTuple):
    """What is kept of an image."""

    labels: NDArray[np.int64]  # [N], the classes that occur
    counts: NDArray[np.float64]  # [4, N] of these, see `segment_counts`
    confusion: Confusion  # of pixels
    png: bytes  # of segment ids
    segments: list[dict[str, Any]]  # COCO's segments_info


def shared_pixels(truth: PanopticSegmentation, found: PanopticSegmentation) -> NDArray[np.int64]:
    """Pixels by segment of the truth and found segment: [T + 1, F + 1], where row and column 0 are no segment.

    Raises:
        ValueError: the two maps differ in size.
    """
    if truth.segment_map.shape != found.segment_map.shape:
        sizes = tuple(truth.segment_map.shape), tuple(found.segment_map.shape)
        raise ValueError(f"the segment map's size is {sizes[1]}, the truth's is {sizes[0]}")
    size = len(truth.labels) + 1, len(found.labels) + 1
    pairs = truth.segment_map.cpu().numpy().astype(np.int64) * size[1] + found.segment_map.cpu().numpy()
    return np.bincount(pairs.ravel(), minlength=size[0] * size[1]).reshape(size)


def pixel_confusion(
    shared: NDArray[np.int64],
    truth: PanopticSegmentation,
    is_crowd: NDArray[np.bool_],
    found: PanopticSegmentation,
    num_classes: int,
) -> Confusion:
    """Pixels by true and found class; those of crowds, and those of which the truth says nothing, do not count.

    Args:
        shared: from `shared_pixels`.
    """
    rows, columns = np.nonzero(shared[1:][~is_crowd])
    found_labels = np.append(num_classes, found.labels.cpu().numpy())  # column 0 is "nothing"
    cells = truth.labels.cpu().numpy()[~is_crowd][rows], found_labels[columns], shared[1:][~is_crowd][rows, columns]
    return Confusion.sum([Confusion(*cells)], num_classes)


def segment_counts(
    shared: NDArray[np.int64],
    truth: PanopticSegmentation,
    is_crowd: NDArray[np.bool_],
    found: PanopticSegmentation,
    num_classes: int,
) -> NDArray[np.float64]:
    """True positives, false positives, false negatives and the true positives' summed IoU by class: [4, K].

    A found segment and one of the truth match if they are of one class and their IoU is above 0.5; pixels where the
    truth says nothing are not part of the union. Unmatched crowds are not missed, and an unmatched find is not false if
    more than half of it lies on such pixels or on crowds of its class.

    Args:
        shared: from `shared_pixels`.
    """
    true_labels, found_labels = truth.labels.cpu().numpy(), found.labels.cpu().numpy()
    area_true, area_found = shared.sum(1)[1:, None], shared.sum(0)[None, 1:]
    void, overlap = shared[0, 1:], shared[1:, 1:]
    union = area_true + area_found - overlap - void
    iou = overlap / np.maximum(union, 1)
    same_class = true_labels[:, None] == found_labels
    match = (iou > 0.5) & same_class & ~is_crowd[:, None]  # at most one of a row and of a column

    hit = match.any(1)
    missed = ~hit & ~is_crowd & (area_true[:, 0] > 0)
    on_crowd = np.where(same_class & is_crowd[:, None], overlap, 0).sum(0)
    seen = area_found[0] > 0
    false = ~match.any(0) & seen & (void + on_crowd <= 0.5 * area_found[0])

    def by_class(labels: NDArray[np.int64], weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
        return np.bincount(labels, weights, num_classes).astype(np.float64)

    return np.stack(
        [
            by_class(true_labels[hit]),
            by_class(found_labels[false]),
            by_class(true_labels[missed]),
            by_class(true_labels, np.where(match, iou, 0).sum(1)),
        ]
    )


class PanopticEvaluator(Evaluator):
    """PQ, SQ and RQ over a data set: of all classes, of things, of stuff and by class.

    Args:
        ground_truth: the annotation of each image by its id, read when the image is fed.
        categories: of the model, by label.
    """

    score_name = "PQ"
    class_key = "PQ"

    def __init__(self, ground_truth: Mapping[int, Truth], categories: Sequence[Category]) -> None:
        super().__init__()
        self.ground_truth = ground_truth
        self.categories = tuple(categories)

    def update(self, image_id: int, prediction: PanopticSegmentation) -> None:
        """Add the segments of an image.

        Raises:
            ValueError: the ground truth has no such image, or of another size.
        """
        if image_id not in self.ground_truth:
            raise ValueError(f"image id {image_id} is not in the ground truth; evaluate on the data it belongs to")
        truth = self.ground_truth[image_id]
        shared = shared_pixels(truth.segmentation, prediction)
        pair = shared, truth.segmentation, truth.is_crowd, prediction, len(self.categories)
        counts = segment_counts(*pair)
        labels = np.flatnonzero(counts.any(0))
        png, segments = encode_panoptic(prediction, self.categories)
        self._kept[image_id] = _Image(labels, counts[:, labels], pixel_confusion(*pair), png, segments)

    def compute(self, *, only_updated: bool = False) -> dict[str, Any]:
        """{"all", "things", "stuff": {"PQ", "SQ", "RQ", "classes"}, "per_class": {name: {"PQ", ..., "TP", ...}}}.

        Means are over the classes that occur, in the truth or falsely; "classes" is their number.
        """
        total = np.zeros((4, len(self.categories)))
        for image_id in self.ground_truth:
            if image_id in self._kept:
                kept: _Image = self._kept[image_id]
                total[:, kept.labels] += kept.counts
            elif not (only_updated and self._kept):
                truth = self.ground_truth[image_id]
                labels = truth.segmentation.labels.numpy()[~truth.is_crowd]
                total[2] += np.bincount(labels, minlength=len(self.categories))
        hits, false, missed, iou = total
        weight = hits + false / 2 + missed / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            quality = np.stack([iou / weight, np.where(hits > 0, iou / hits, 0.0), hits / weight])  # [3, K]
        things = np.array([category.is_thing for category in self.categories])
        metrics: dict[str, Any] = {
            name: _mean(quality[:, chosen & (weight > 0)])
            for name, chosen in (("all", things | ~things), ("things", things), ("stuff", ~things))
        }
        names = class_names([c.name for c in self.categories], [c.id for c in self.categories])
        metrics["per_class"] = {
            name: {
                **(dict(zip(("PQ", "SQ", "RQ"), map(float, quality[:, k]), strict=True) if weight[k] else _NOTHING)),
                **dict(zip(("TP", "FP", "FN"), map(int, (hits[k], false[k], missed[k])), strict=True)),
            }
            for k, name in enumerate(names)
        }
        return metrics

    def report(self, metrics: Mapping[str, Any]) -> Report:
        pixels = Confusion.sum((kept.confusion for kept in self._kept.values()), len(self.categories))
        return super().report(metrics)._replace(confusion=pixels)

    def results(self) -> dict[str, Any]:
        """What panopticapi takes: {"annotations": [{image_id, file_name of the PNG, segments_info}], "categories"}."""
        annotations = [
            {"image_id": image_id, "file_name": png_name(image_id), "segments_info": self._kept[image_id].segments}
            for image_id in sorted(self._kept)
        ]
        return {"annotations": annotations, "categories": panoptic_categories(self.categories)}

    def files(self) -> dict[str, bytes]:
        return {png_name(image_id): kept.png for image_id, kept in self._kept.items()}

    def scalars(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        scalars = {name: metrics["all"][name] for name in ("PQ", "SQ", "RQ")}
        return {**scalars, "PQ_things": metrics["things"]["PQ"], "PQ_stuff": metrics["stuff"]["PQ"]}

    def one_line(self, metrics: Mapping[str, Any]) -> str:
        parts = [f"{name} {three_digits(metrics['all'][name])}" for name in ("PQ", "SQ", "RQ")]
        return ", ".join(
            [*parts, *(f"PQ of {kind} {three_digits(metrics[kind]['PQ'])}" for kind in ("things", "stuff"))]
        )

    def table(self, metrics: Mapping[str, Any]) -> RenderableType:
        summary = {kind: metrics[kind] for kind in ("all", "things", "stuff")}
        return score_table(summary, metrics["per_class"], ("PQ", "SQ", "RQ"))


_NOTHING: dict[str, float | None] = {"PQ": None, "SQ": None, "RQ": None}


def _mean(quality: NDArray[np.float64]) -> dict[str, float | int | None]:
    """PQ, SQ, RQ [3, K] of the classes that occur -> their means."""
    count = quality.shape[1]
    means = quality.mean(1).tolist() if count else [None] * 3
    return {**dict(zip(("PQ", "SQ", "RQ"), means, strict=True)), "classes": count}


def encode_panoptic(found: PanopticSegmentation, categories: Sequence[Category]) -> tuple[bytes, list[dict[str, Any]]]:
    """A PNG of segment ids and COCO's `segments_info`, with the data set's own category ids and names."""
    segment_map = found.segment_map.cpu().numpy()
    areas = np.bincount(segment_map.ravel(), minlength=len(found.labels) + 1).tolist()
    segments = [
        {
            "id": number,
            "category_id": categories[label].id,
            "category_name": categories[label].name,
            "isthing": int(categories[label].is_thing),
            "area": areas[number],
            "score": float(f"{score:.6g}"),
        }
        for number, (label, score) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), strict=True), start=1)
    ]
    return segment_png(segment_map), segments


def panoptic_categories(categories: Sequence[Category]) -> list[dict[str, Any]]:
    """COCO's panoptic `categories`."""
    return [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in categories]


def png_name(image_id: int) -> str:
    """The file of an image's label map."""
    return f"{image_id:012d}.png"
