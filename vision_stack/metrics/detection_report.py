"""Where a detector or instance segmenter errs: precision and recall by score, its best threshold, what it confuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vision_stack.metrics.confusion import Confusion

MATCH_IOU = 0.5


class Matches(NamedTuple):
    """The detections of one class over a data set, matched to its objects at one IoU threshold."""

    scores: NDArray[np.float64]  # [N]; detections that match crowd regions are left out
    correct: NDArray[np.bool_]  # [N], whether each matches an object
    num_objects: int


class OperatingPoint(NamedTuple):
    """Precision, recall and their harmonic mean when only detections of at least `threshold` are kept."""

    threshold: float
    precision: float
    recall: float
    f1: float


def class_matches(evaluation: Any) -> Matches:
    """The matches of a `COCOeval` of one class after `evaluate()`, at an IoU of 0.5, whatever the area."""
    level = int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, MATCH_IOU))[0])
    images = [image for image in evaluation.evalImgs[: len(evaluation.params.imgIds)] if image is not None]
    kept = [~image["dtIgnore"][level].astype(bool) for image in images]
    scores = [np.asarray(image["dtScores"], np.float64)[k] for image, k in zip(images, kept, strict=True)]
    correct = [image["dtMatches"][level][k] > 0 for image, k in zip(images, kept, strict=True)]
    return Matches(
        np.concatenate(scores) if scores else np.zeros(0),
        np.concatenate(correct) if correct else np.zeros(0, bool),
        sum(int(np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)) for image in images),
    )


def together(matches: Iterable[Matches]) -> Matches:
    """All classes as one."""
    every = list(matches)
    return Matches(
        np.concatenate([np.zeros(0), *(m.scores for m in every)]),
        np.concatenate([np.zeros(0, bool), *(m.correct for m in every)]),
        sum(m.num_objects for m in every),
    )


def precision_recall(matches: Matches) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds, falling, and precision and recall of the detections that score at least that."""
    order = np.argsort(-matches.scores, kind="stable")
    scores, correct = matches.scores[order], np.cumsum(matches.correct[order])
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # equal scores are kept or dropped together
    count = np.arange(1, len(scores) + 1)[last]
    return scores[last], correct[last] / count, correct[last] / max(matches.num_objects, 1)


def interpolated(matches: Matches) -> NDArray[np.float64]:
    """Precision at recalls of 0, 0.01, ..., 1 [101], each the best at that recall or a higher one; 0 beyond the last.

    Their mean is COCO's AP at one IoU threshold.
    """
    correct = np.cumsum(matches.correct[np.argsort(-matches.scores, kind="mergesort")])
    precision = correct / np.arange(1, len(correct) + 1)
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return precision[np.searchsorted(correct / max(matches.num_objects, 1), np.linspace(0.0, 1.0, 101))]


def best_f1(matches: Matches) -> OperatingPoint | None:
    """The threshold with the best F1; of a model that finds nothing, one that keeps as many detections as objects.

    None without objects or without detections.
    """
    thresholds, precision, recall = precision_recall(matches)
    if not len(thresholds) or not matches.num_objects:
        return None
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1))
    if not f1[best]:
        kept = np.sort(matches.scores)[::-1][min(matches.num_objects, len(matches.scores)) - 1]
        best = int(np.flatnonzero(thresholds == kept)[0])
    return OperatingPoint(*(float(values[best]) for values in (thresholds, precision, recall, f1)))


def object_confusion(
    truth: Mapping[int, Sequence[Mapping[str, Any]]],
    found: Mapping[int, Sequence[Mapping[str, Any]]],
    label_of: Mapping[int, int],
    threshold: float,
    *,
    boxes: bool = False,
) -> Confusion:
    """Objects by true and found class: false detections have the true class "nothing", missed objects the found one.

    In each image the detections of at least `threshold` take, best first, the object that they overlap most, of
    whatever class, with an IoU of at least 0.5. Detections in crowd regions do not count.

    Args:
        truth: annotations by image id, with RLE `segmentation` or, for `boxes`, `bbox` (x, y, width, height).
        found: results by image id.
        label_of: category id -> label.
    """
    nothing = len(label_of)
    counts: Counter[tuple[int, int]] = Counter()
    key = "bbox" if boxes else "segmentation"
    for image_id in truth.keys() | found.keys():
        objects = list(truth.get(image_id, ()))
        kept = sorted((r for r in found.get(image_id, ()) if r["score"] >= threshold), key=lambda r: -r["score"])
        crowd = np.array([bool(o.get("iscrowd")) for o in objects], bool)
        overlap = np.zeros((len(kept), len(objects)))
        if kept and objects:
            overlap = coco_mask.iou([r[key] for r in kept], [o[key] for o in objects], crowd.astype(np.uint8))
        free = ~crowd
        for row, result in zip(overlap, kept, strict=True):
            candidates = np.where(free, row, 0.0)
            if len(row) and candidates.max() >= MATCH_IOU:
                best = int(candidates.argmax())
                free[best] = False
                counts[label_of[objects[best]["category_id"]], label_of[result["category_id"]]] += 1
            elif not (len(row) and row[crowd].max(initial=0.0) >= MATCH_IOU):
                counts[nothing, label_of[result["category_id"]]] += 1
        for missed in np.flatnonzero(free):
            counts[label_of[objects[missed]["category_id"]], nothing] += 1
    true, found_as = np.array(list(counts), np.int64).reshape(-1, 2).T
    return Confusion.sum([Confusion(true, found_as, np.array(list(counts.values()), np.int64))], nothing)
