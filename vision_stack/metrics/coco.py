"""Mask and box AP exactly as pycocotools computes them, from results kept as run-length codes."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from rich.console import RenderableType

from vision_stack.metrics.base import Evaluator, Report, class_names, three_digits
from vision_stack.metrics.boundary import BoundaryEval
from vision_stack.metrics.confusion import Confusion
from vision_stack.metrics.detection_report import (
    Matches,
    best_f1,
    class_matches,
    interpolated,
    object_confusion,
    precision_recall,
    together,
)
from vision_stack.metrics.table import format_table
from vision_stack.structures import Category, Instances

IouType = Literal["segm", "bbox", "boundary"]
FREQUENCIES = ("r", "c", "f")  # rare, common, frequent: of up to 10, up to 100, more training images (LVIS)
_TITLES: dict[IouType, str] = {"segm": "mask", "boundary": "boundary", "bbox": "box"}


def coco_results(
    image_id: int, instances: Instances, categories: Sequence[Category], *, boxes: bool = False
) -> list[dict[str, Any]]:
    """Records of one image in COCO's results format, with the data set's own category ids and names.

    Args:
        instances: their masks as RLE, or without masks, whose records have `bbox` in place of `segmentation`.
        boxes: add `bbox` (x, y, width, height) to the masks. Files that are evaluated do without: where it is there,
            pycocotools takes the boxes' areas for the masks' and so moves masks between small, medium and large.
    """
    records = []
    masks = instances.masks
    assert masks is None or isinstance(masks, list), "masks are encoded before they are written"
    columns = (instances.boxes.tolist(), instances.labels.tolist(), instances.scores.tolist())
    for n, ((x0, y0, x1, y1), label, score) in enumerate(zip(*columns, strict=True)):
        record: dict[str, Any] = {
            "image_id": image_id,
            "category_id": categories[label].id,
            "category_name": categories[label].name,
            "score": float(f"{score:.6g}"),  # as many digits as float32 has, for small scores too
        }
        if masks is not None:
            rle = masks[n]
            counts = rle["counts"].decode("ascii")
            record["segmentation"] = {"size": [int(n) for n in rle["size"]], "counts": counts}
        if boxes or masks is None:
            record["bbox"] = [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)]
        records.append(record)
    return records


class CocoEvaluator(Evaluator):
    """COCO's mask and box AP over a data set, fed image by image. Holds run-length codes, never masks.

    Args:
        ground_truth: the content of a COCO json: images, annotations, categories. It is not changed.
        categories: of the model, by label.
        iou_types: of "segm", "bbox" and "boundary"; the first one's AP is the score. Boxes are those predicted, which
            heads that find masks alone draw around them; boundary AP (Cheng et al. 2021) counts the lesser of mask and
            boundary IoU. Sizes of detections with masks are the masks' areas for all kinds.
        max_detections: the most of an image that count, best first.

    Of a federated ground truth (LVIS, Gupta et al. 2019) detections count where their class was looked for: images that
    have it or list it in `neg_category_ids`. In those of `not_exhaustive_category_ids`, detections that match nothing
    are neither right nor wrong. Where categories have a `frequency`, there are "APr", "APc" and "APf", too.

    Boxes and areas missing in the ground truth are taken from the masks. Annotation ids are replaced by 1, 2, ...,
    because pycocotools counts a detection that matches the annotation with id 0 as a false one.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        categories: Sequence[Category],
        iou_types: Sequence[IouType] = ("segm", "bbox"),
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.iou_types = tuple(iou_types)
        self.class_key = self.iou_types[0]
        self.score_name = f"{_TITLES[self.iou_types[0]]} AP"
        self.max_detections = max_detections
        self._max_dets = [1, 10, max(100, max_detections)]
        self._ground_truth = _index(_complete(ground_truth))
        self._matches: dict[str, Matches] = {}  # of the first kind, by class
        self._measured_images: frozenset[int] = frozenset()

    def update(self, image_id: int, instances: Instances) -> None:
        """Add the detections of an image.

        Raises:
            ValueError: the ground truth has no such image.
        """
        if image_id not in self._ground_truth.imgs:
            raise ValueError(f"image id {image_id} is not in the ground truth; evaluate on the data it belongs to")
        records = coco_results(image_id, instances, self.categories, boxes=True)
        self._kept[image_id] = sorted(records, key=lambda record: -record["score"])[: self.max_detections]

    def results(self) -> list[dict[str, Any]]:
        """All detections as `pycocotools.coco.COCO.loadRes` takes them: images by id, of an image the best first.

        Those with masks are without boxes, see `coco_results`.
        """
        return [
            {name: value for name, value in record.items() if name != "bbox" or "segmentation" not in record}
            for record in self._records()
        ]

    def _records(self) -> Iterator[dict[str, Any]]:
        for image_id in sorted(self._kept):
            yield from self._kept[image_id]

    def compute(self, *, only_updated: bool = False) -> dict[str, Any]:
        """Evaluate: {"segm": {"AP", "AP50", ...}, "bbox": {...}, "per_class": {name: {"segm": AP, "bbox": AP}}}.

        Values are in [0, 1], or None where the ground truth has no object of that class or size.

        Args:
            only_updated: leave out images that have not been fed. Otherwise their objects count as missed.
        """
        chosen = self._kept if only_updated and self._kept else self._ground_truth.imgs
        self._measured_images = frozenset(chosen)
        truth = _by_class(a for a in self._ground_truth.dataset["annotations"] if a["image_id"] in chosen)
        looked_for = self._looked_for(truth)
        found = _by_class(
            _measured(record, number)
            for number, record in enumerate(self._records(), start=1)
            if looked_for is None or (record["image_id"], record["category_id"]) in looked_for
        )
        listed = {c["id"]: str(c["name"]) for c in self._ground_truth.dataset["categories"]}
        names = dict(zip(listed, class_names(listed.values(), listed), strict=True))
        metrics: dict[str, Any] = {}
        per_class: dict[str, dict[str, float | None]] = {name: {} for name in names.values()}
        for iou_type in self.iou_types:
            scores = {
                category_id: self._evaluate(iou_type, truth[category_id], found.get(category_id, []))
                for category_id in sorted(listed)
                if category_id in truth  # of a class without objects nothing can be measured
            }
            metrics[iou_type] = _summary(list(scores.values()), self._max_dets) | self._by_frequency(scores)
            if iou_type == self.iou_types[0]:
                self._matches = {names[category_id]: score.matches for category_id, score in scores.items()}
            for category_id, name in names.items():
                score = scores.get(category_id)
                per_class[name][iou_type] = None if score is None else _mean(score.precision[:, 0])
        return {**metrics, "per_class": per_class}

    def _by_frequency(self, scores: Mapping[int, _ClassScores]) -> dict[str, float | None]:
        """Mean AP of LVIS' rare, common and frequent classes, if the ground truth says which these are."""
        groups: dict[str, list[NDArray[np.float64]]] = {frequency: [] for frequency in FREQUENCIES}
        for category in self._ground_truth.dataset["categories"]:
            if category.get("frequency") in groups and category["id"] in scores:
                groups[category["frequency"]].append(scores[category["id"]].precision[:, 0])
        if not any(groups.values()):
            return {}
        return {f"AP{frequency}": _mean(np.array(group)) for frequency, group in groups.items()}

    def _looked_for(self, truth: Mapping[int, Sequence[Mapping[str, Any]]]) -> set[tuple[int, int]] | None:
        """Pairs of image and class that were annotated, if the ground truth says so (LVIS): others do not count."""
        images = self._ground_truth.imgs.values()
        if not any("neg_category_ids" in image for image in images):
            return None
        absent = {(image["id"], number) for image in images for number in image.get("neg_category_ids", ())}
        return absent | {(each["image_id"], number) for number, some in truth.items() for each in some}

    def report(self, metrics: Mapping[str, Any]) -> Report:
        report, everything = super().report(metrics), together(self._matches.values())
        if not everything.num_objects:
            return report
        point = best_f1(everything)
        _, precision, recall = precision_recall(everything)
        return report._replace(
            point=point and point._asdict(),
            curves={name: interpolated(matches) for name, matches in self._matches.items() if matches.num_objects},
            all_classes=(recall, precision),
            confusion=self._confusion(point.threshold if point else 1.0),
            unit="objects",
        )

    def _confusion(self, threshold: float) -> Confusion:
        truth: dict[int, list[dict[str, Any]]] = {}
        boxes = "segm" not in self.iou_types
        for annotation in self._ground_truth.dataset["annotations"]:
            if annotation["image_id"] in self._measured_images:
                size = [self._ground_truth.imgs[annotation["image_id"]][side] for side in ("height", "width")]
                shape = {} if boxes else {"segmentation": _rle(annotation["segmentation"], *size)}
                truth.setdefault(annotation["image_id"], []).append({**annotation, **shape})
        label_of = {category.id: label for label, category in enumerate(self.categories)}
        return object_confusion(truth, self._kept, label_of, threshold, boxes=boxes)

    def scalars(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        return {f"{kind}_{name}": value for kind in self.iou_types for name, value in metrics[kind].items()}

    def one_line(self, metrics: Mapping[str, Any]) -> str:
        parts = [
            f"{title} AP {three_digits(metrics[kind]['AP'])}" for kind, title in _TITLES.items() if kind in metrics
        ]
        return ", ".join([parts[0], f"AP50 {three_digits(metrics[self.iou_types[0]]['AP50'])}", *parts[1:]])

    def table(self, metrics: Mapping[str, Any]) -> RenderableType:
        return format_table(metrics)

    def _evaluate(self, iou_type: IouType, truth: list[dict[str, Any]], found: list[dict[str, Any]]) -> _ClassScores:
        """One class by itself: pycocotools' tables over images x classes, nearly all empty, outgrow any memory."""
        image_ids = sorted({record["image_id"] for record in (*truth, *found)})
        images = [self._ground_truth.imgs[image_id] for image_id in image_ids]
        categories = [self._ground_truth.cats[truth[0]["category_id"]]]
        parts = [_index({"images": images, "annotations": part, "categories": categories}) for part in (truth, found)]
        kind = BoundaryEval if iou_type == "boundary" else COCOeval
        incomplete = {
            image["id"] for image in images if categories[0]["id"] in image.get("not_exhaustive_category_ids", ())
        }
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = kind(*parts, "bbox" if iou_type == "bbox" else "segm")
            evaluation.params.maxDets = self._max_dets
            evaluation.evaluate()
            for image in evaluation.evalImgs if incomplete else ():
                if image is not None and image["image_id"] in incomplete:  # may well be an object
                    image["dtIgnore"] = image["dtIgnore"] | (image["dtMatches"] == 0)
            evaluation.accumulate()
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        return _ClassScores(precision[:, :, 0, :, -1].mean(1), recall[:, 0], class_matches(evaluation))


class _ClassScores(NamedTuple):
    """Of one class, over T IoU thresholds, A areas (all, small, medium, large) and M numbers of detections."""

    precision: NDArray[
        np.float64
    ]  # [T, A], the mean over recalls, for the most detections; -1 where there is no object
    recall: NDArray[np.float64]  # [T, A, M]
    matches: Matches


def _summary(scores: Sequence[_ClassScores], max_dets: Sequence[int]) -> dict[str, float | None]:
    """The twelve numbers of COCO's table."""
    thresholds = Params().iouThrs
    precision = np.array([score.precision for score in scores]).reshape(-1, len(thresholds), 4)
    recall = np.array([score.recall for score in scores]).reshape(-1, len(thresholds), 4, len(max_dets))
    summary = {
        "AP": _mean(precision[:, :, 0]),
        "AP50": _mean(precision[:, np.isclose(thresholds, 0.5), 0]),
        "AP75": _mean(precision[:, np.isclose(thresholds, 0.75), 0]),
    }
    for area, letter in enumerate("sml", start=1):
        summary[f"AP{letter}"] = _mean(precision[:, :, area])
    for index, count in enumerate(max_dets):
        summary[f"AR{count}"] = _mean(recall[:, :, 0, index])
    for area, letter in enumerate("sml", start=1):
        summary[f"AR{letter}"] = _mean(recall[:, :, area, -1])
    return summary


def _by_class(records: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        grouped.setdefault(record["category_id"], []).append(record)
    return grouped


def _mean(values: np.ndarray) -> float | None:
    """pycocotools marks with -1 what the ground truth has no objects for."""
    valid = values[values > -1]
    mean = float(valid.mean()) if valid.size else math.nan
    return mean if math.isfinite(mean) else None


def _index(dataset: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
    return coco


def _complete(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """A copy in which each annotation has all that pycocotools reads."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        annotation = {"iscrowd": 0, **annotation, "id": number}
        if ("area" not in annotation or "bbox" not in annotation) and annotation.get("segmentation"):
            rle = _rle(annotation["segmentation"], *sizes[annotation["image_id"]])
            annotation.setdefault("area", float(coco_mask.area(rle)))
            annotation.setdefault("bbox", coco_mask.toBbox(rle).tolist())
        elif "area" not in annotation:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotations.append(annotation)
    images, categories = list(ground_truth["images"]), list(ground_truth["categories"])
    return {"images": images, "annotations": annotations, "categories": categories}


def _rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def _measured(record: dict[str, Any], number: int) -> dict[str, Any]:
    """A result as pycocotools' `loadRes` completes it, but for the box, which stays that of the prediction."""
    rle = record.get("segmentation")
    area = record["bbox"][2] * record["bbox"][3] if rle is None else float(coco_mask.area(rle))
    return {**record, "area": area, "id": number, "iscrowd": 0}
