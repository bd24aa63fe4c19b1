"""The evaluator against pycocotools run by hand on the files it writes, and against cases with a known answer."""

import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from vision_stack.metrics import CocoEvaluator, coco_results, format_table
from vision_stack.structures import Category, Instances
from vision_stack.training.results import Results

CATEGORIES = (Category(id=7, name="cat"), Category(id=3, name="dog"), Category(id=90, name="none here"))
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZE = (200, 260)


def ellipse(center_y, center_x, radius_y, radius_x):
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    return ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 <= 1


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def random_data(num_images=6, seed=0, first_id=1):
    """Ground truth with polygons, compressed and uncompressed RLE, crowds and sparse ids; per image its objects."""
    rng = np.random.default_rng(seed)
    images, annotations, objects = [], [], {}
    for image_id in range(11, 11 + 10 * num_images, 10):
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": SIZE[0], "width": SIZE[1]})
        objects[image_id] = []
        for number in range(rng.integers(1, 9)):
            radii = rng.choice([6, 25, 70]) * rng.uniform(0.6, 1.0, 2)
            place = rng.uniform(30, 170), rng.uniform(30, 230)
            mask = ellipse(*place, *radii)
            label = int(rng.integers(0, 2))
            rle = encode(mask)
            area, bbox = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
            kind = number % 3
            if kind == 0:
                angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
                x, y = place[1] + radii[1] * np.cos(angles), place[0] + radii[0] * np.sin(angles)
                segmentation = [np.stack([x, y], 1).clip(0, None).round(2).flatten().tolist()]
            elif kind == 1:
                segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
            else:
                flat = mask.flatten(order="F")
                bounds = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
                segmentation = {"size": list(SIZE), "counts": np.diff(bounds).tolist()}
            annotation = {"id": first_id + len(annotations), "image_id": image_id, "segmentation": segmentation}
            annotation |= {"category_id": CATEGORIES[label].id, "area": area, "bbox": bbox, "iscrowd": int(number == 5)}
            annotations.append(annotation)
            objects[image_id].append((mask, label))
    categories = [{"id": c.id, "name": c.name} for c in sorted(CATEGORIES, key=lambda c: c.id)]
    return {"images": images, "annotations": annotations, "categories": categories}, objects


def instances_of(masks, labels, scores):
    rles = [encode(mask) for mask in masks]
    boxes = coco_mask.toBbox(rles) if rles else np.zeros((0, 4))
    boxes[:, 2:] += boxes[:, :2]
    return Instances(torch.tensor(boxes).float(), torch.tensor(labels).long(), torch.tensor(scores), rles)


def noisy_detections(objects, seed=1):
    """Shifted copies of the objects, some twice, some with the wrong class, some out of nowhere."""
    rng = np.random.default_rng(seed)
    found = {}
    for image_id, things in objects.items():
        masks, labels, scores = [], [], []
        for mask, label in things * 2:
            shift = rng.integers(-12, 13, 2)
            masks.append(np.roll(mask, shift, (0, 1)))
            labels.append(label if rng.random() < 0.8 else int(rng.integers(0, 3)))
            scores.append(float(rng.random()) ** 4)
        found[image_id] = instances_of(masks, labels, scores)
    return found


def by_hand(ground_truth, results_path, iou_type, image_ids=None):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(str(results_path)), iou_type)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def filled(ground_truth, detections, **kwargs):
    evaluator = CocoEvaluator(ground_truth, CATEGORIES, **kwargs)
    for image_id, instances in detections.items():
        evaluator.update(image_id, instances)
    return evaluator


def test_boxes_are_those_predicted_and_not_those_around_the_masks() -> None:
    mask = ellipse(100, 120, 40, 60)
    rle = encode(mask)
    truth = {
        "id": 1,
        "image_id": 1,
        "category_id": 7,
        "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()},
    }
    data = {"images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}], "annotations": [truth]}
    evaluator = CocoEvaluator({**data, "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES]}, CATEGORIES)
    half = mask & (np.arange(SIZE[1]) < 120)
    found = instances_of([half], [0], [0.9])
    whole = instances_of([mask], [0], [0.9])
    evaluator.update(1, dataclasses.replace(found, boxes=whole.boxes))
    metrics = evaluator.compute()
    assert metrics["bbox"]["AP"] > 0.999
    assert metrics["segm"]["AP"] < 0.2
    assert "bbox" not in evaluator.results()[0]


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_noisy_detections_equal_pycocotools_on_the_written_file(tmp_path, iou_type, seed):
    ground_truth, objects = random_data(seed=seed)
    evaluator = filled(ground_truth, noisy_detections(objects))
    (tmp_path / "predictions.json").write_text(json.dumps(evaluator.results()))
    metrics = evaluator.compute()
    expected = by_hand(ground_truth, tmp_path / "predictions.json", iou_type)
    assert 0.02 < expected.stats[0] < 0.9
    for name, value in zip(NAMES, expected.stats, strict=True):
        ours = metrics[iou_type][name]
        assert (value == -1 and ours is None) or ours == pytest.approx(value, abs=1e-12)  # the same sums
    for position, category_id in enumerate(expected.params.catIds):
        precision = expected.eval["precision"][:, :, position, 0, -1]
        name = next(c.name for c in CATEGORIES if c.id == category_id)
        value = metrics["per_class"][name][iou_type]
        assert value == (pytest.approx(precision[precision > -1].mean()) if (precision > -1).any() else None)


def test_perfect_detections_score_one_and_absent_classes_none():
    ground_truth, objects = random_data()
    for annotation in ground_truth["annotations"]:  # polygons are not exactly the masks they were made from
        if isinstance(annotation["segmentation"], list):
            number = [a for a in ground_truth["annotations"] if a["image_id"] == annotation["image_id"]].index(
                annotation
            )
            rle = encode(objects[annotation["image_id"]][number][0])
            annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    detections = {
        image_id: instances_of([m for m, _ in things], [n for _, n in things], [0.9] * len(things))
        for image_id, things in objects.items()
    }
    metrics = filled(ground_truth, detections).compute()
    for kind in ("segm", "bbox"):
        assert metrics[kind]["AP"] == pytest.approx(1.0)  # pycocotools adds an epsilon to precisions
        assert metrics[kind]["ARl"] == 1.0
        assert metrics["per_class"]["none here"][kind] is None


def test_order_of_updates_does_not_change_the_metrics():
    ground_truth, objects = random_data()
    detections = noisy_detections(objects)
    backwards = dict(reversed(detections.items()))
    assert filled(ground_truth, detections).compute() == filled(ground_truth, backwards).compute()


def test_swapped_classes_score_zero():
    ground_truth, objects = random_data()
    detections = {
        image_id: instances_of([m for m, _ in things], [1 - n for _, n in things], [0.9] * len(things))
        for image_id, things in objects.items()
        if len({label for _, label in things}) == 1
    }
    assert detections
    metrics = filled(ground_truth, detections).compute(only_updated=True)
    assert metrics["segm"]["AP"] == 0.0


def test_detection_on_a_crowd_counts_neither_way():
    mask, other = ellipse(100, 100, 60, 60), ellipse(40, 220, 20, 20)
    image = {"id": 5, "file_name": "5.jpg", "height": SIZE[0], "width": SIZE[1]}
    annotations = []
    for number, (region, crowd) in enumerate([(mask, 1), (other, 0)], start=1):
        rle = encode(region)
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        annotation = {"id": number, "image_id": 5, "category_id": 7, "iscrowd": crowd}
        annotations.append({**annotation, "segmentation": segmentation})
    categories = [{"id": 7, "name": "cat"}]
    evaluator = CocoEvaluator({"images": [image], "annotations": annotations, "categories": categories}, CATEGORIES)
    inside = [ellipse(80, 80, 15, 15), ellipse(110, 120, 10, 10)]
    evaluator.update(5, instances_of([*inside, other], [0, 0, 0], [0.9, 0.8, 0.7]))
    metrics = evaluator.compute()
    assert metrics["segm"]["AP"] == pytest.approx(1.0)
    assert metrics["bbox"]["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("updates", ["none", "empty"])
def test_no_detections_scores_zero(updates):
    ground_truth, objects = random_data()
    evaluator = CocoEvaluator(ground_truth, CATEGORIES)
    if updates == "empty":
        for image_id in objects:
            evaluator.update(image_id, instances_of([], [], []))
    for only_updated in (False, True):
        metrics = evaluator.compute(only_updated=only_updated)
        assert {metrics[kind][name] for kind in ("segm", "bbox") for name in ("AP", "AP50", "AR100")} == {0.0}
    assert evaluator.results() == []


def test_only_updated_leaves_the_other_images_out(tmp_path):
    ground_truth, objects = random_data()
    detections = noisy_detections(objects)
    seen = sorted(detections)[:2]
    evaluator = filled(ground_truth, {image_id: detections[image_id] for image_id in seen})
    (tmp_path / "predictions.json").write_text(json.dumps(evaluator.results()))
    for only_updated, image_ids in ((True, seen), (False, None)):
        expected = by_hand(ground_truth, tmp_path / "predictions.json", "segm", image_ids).stats[0]
        assert evaluator.compute(only_updated=only_updated)["segm"]["AP"] == pytest.approx(expected, abs=1e-12)


def test_merged_ranks_equal_one_process_even_where_images_repeat():
    ground_truth, objects = random_data()
    detections = noisy_detections(objects)
    ids = sorted(detections)
    ranks = [filled(ground_truth, {image_id: detections[image_id] for image_id in part}) for part in (ids[:4], ids[3:])]
    states = json.loads(json.dumps([rank.state() for rank in ranks]))
    merged = CocoEvaluator(ground_truth, CATEGORIES)
    merged.merge(states)
    whole = filled(ground_truth, detections)
    assert merged.results() == whole.results()
    assert merged.compute() == whole.compute()


def test_annotation_ids_from_zero_score_like_ids_from_one():
    detections = noisy_detections(random_data()[1])
    zero, one = (filled(random_data(first_id=first)[0], detections).compute() for first in (0, 1))
    assert zero == one


def test_missing_areas_and_boxes_are_taken_from_the_masks():
    ground_truth, objects = random_data()
    detections = noisy_detections(objects)
    bare = copy.deepcopy(ground_truth)
    for annotation in bare["annotations"]:
        rle = encode(COCO.annToMask(_indexed(ground_truth), annotation))
        annotation["area"], annotation["bbox"] = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    complete = filled(copy.deepcopy(bare), detections).compute()
    for annotation in bare["annotations"]:
        del annotation["area"], annotation["bbox"]
    assert filled(bare, detections).compute() == complete


def _indexed(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
    return coco


def test_ground_truth_is_not_changed():
    ground_truth, objects = random_data()
    before = copy.deepcopy(ground_truth)
    filled(ground_truth, noisy_detections(objects)).compute()
    assert ground_truth == before


def test_unknown_image_is_an_error():
    evaluator = CocoEvaluator(random_data()[0], CATEGORIES)
    with pytest.raises(ValueError, match="image id 12345 is not in the ground truth"):
        evaluator.update(12345, instances_of([], [], []))


def test_more_detections_than_allowed_keeps_the_best_and_equals_pycocotools(tmp_path):
    ground_truth, objects = random_data()
    detections = noisy_detections(objects)
    evaluator = filled(ground_truth, detections, max_detections=3)
    (tmp_path / "predictions.json").write_text(json.dumps(evaluator.results()))
    for image_id, instances in detections.items():
        kept = [record["score"] for record in evaluator.results() if record["image_id"] == image_id]
        best = instances.scores.sort(descending=True).values[:3]
        assert kept == pytest.approx(best.tolist(), rel=1e-5)  # scores are written with six digits
    expected = by_hand(ground_truth, tmp_path / "predictions.json", "segm")
    assert list(evaluator.compute()["segm"].values()) == pytest.approx(expected.stats.tolist(), abs=1e-12)


def test_records_carry_original_ids_names_and_plain_values():
    (record,) = coco_results(4, instances_of([ellipse(50, 60, 10, 20)], [1], [0.123456789]), CATEGORIES, boxes=True)
    assert json.loads(json.dumps(record)) == record
    assert (record["category_id"], record["category_name"]) == (3, "dog")
    assert record["score"] == 0.123457
    assert record["bbox"] == [40.0, 40.0, 41.0, 21.0]
    assert isinstance(record["segmentation"]["counts"], str)


def test_files_hold_metrics_with_the_category_map_and_all_detections(tmp_path):
    ground_truth, objects = random_data()
    evaluator = filled(ground_truth, noisy_detections(objects))
    Results.of(evaluator).write(tmp_path)
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read["categories"][0] == {"index": 0, "id": 7, "name": "cat"}
    assert read["num_images"] == len(ground_truth["images"])
    point = read["operating_point"]
    assert 0 < point["threshold"] < 1
    assert point["f1"] == pytest.approx(
        2 * point["precision"] * point["recall"] / (point["precision"] + point["recall"])
    )
    for name in ("precision_recall.png", "confusion.png", "classes.png"):
        assert (tmp_path / "pictures" / name).is_file()
    del read["categories"], read["num_images"], read["operating_point"]
    assert read == evaluator.compute()
    assert json.loads((tmp_path / "predictions.json").read_text()) == evaluator.results()


def test_report_counts_every_object_and_every_detection_of_the_operating_point_once(tmp_path):
    ground_truth, objects = random_data()
    evaluator = filled(ground_truth, noisy_detections(objects))
    results = Results.of(evaluator)
    report = results.report
    assert report.point is not None
    assert report.confusion is not None
    true, found, counts = report.confusion
    nothing = len(CATEGORIES)
    real = [a for a in ground_truth["annotations"] if not a.get("iscrowd")]
    assert counts[true != nothing].sum() == len(real)
    kept = [r for r in evaluator.results() if r["score"] >= report.point["threshold"]]
    assert 0 < counts[found != nothing].sum() <= len(kept)  # less those in crowds
    results.write(tmp_path)
    rows = [line.split(",") for line in (tmp_path / "confusion.csv").read_text().splitlines()[1:]]
    ids = {str(category["id"]): category["name"] for category in ground_truth["categories"]} | {"": ""}
    assert all(row[1] == ids[row[0]] and row[3] == ids[row[2]] for row in rows)
    assert sum(int(row[4]) for row in rows) == counts.sum()


def test_report_curves_have_cocos_ap50_for_a_mean():
    ground_truth, objects = random_data()
    metrics = Results.of(filled(ground_truth, noisy_detections(objects)))
    curves = metrics.report.curves
    assert np.mean([*curves.values()]) == pytest.approx(metrics.metrics["segm"]["AP50"], abs=1e-12)
    recall, precision = metrics.report.all_classes
    assert (np.diff(recall) >= 0).all()
    assert ((precision >= 0) & (precision <= 1)).all()
    assert metrics.report.class_scores == {
        name: values["segm"] for name, values in metrics.metrics["per_class"].items() if values["segm"] is not None
    }


@pytest.mark.parametrize("anything", [False, True])
def test_report_of_a_model_that_finds_nothing_has_flat_curves_and_all_objects_as_missed(anything, tmp_path):
    ground_truth, objects = random_data()
    corner = instances_of([ellipse(0, 0, 3, 3)], [0], [0.04])
    results = Results.of(filled(ground_truth, {image_id: corner for image_id in objects if anything}))
    results.write(tmp_path)
    assert all(not precision.any() for precision in results.report.curves.values())
    true, found, counts = results.report.confusion
    assert counts[found == len(CATEGORIES)].sum() == counts[true != len(CATEGORIES)].sum() > 0
    assert (results.report.point or {"f1": 0})["f1"] == 0
    assert (tmp_path / "pictures" / "precision_recall.png").is_file()


def test_same_class_names_are_told_apart():
    ground_truth, _ = random_data()
    for category in ground_truth["categories"]:
        category["name"] = "thing"
    assert set(CocoEvaluator(ground_truth, CATEGORIES).compute()["per_class"]) == {
        "thing (3)",
        "thing (7)",
        "thing (90)",
    }


def test_computing_prints_nothing(capsys):
    ground_truth, objects = random_data()
    filled(ground_truth, noisy_detections(objects)).compute()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_table_many_long_class_names_fits_eighty_columns_and_shows_every_ap(num_classes):
    values = {name: 0.123 for name in NAMES} | {"APs": None}
    per_class = {f"{'very long name ' * 3}{i}": {"segm": i / 100, "bbox": i / 200} for i in range(1, num_classes + 1)}
    per_class["absent"] = {"segm": None, "bbox": None}
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(format_table({"segm": values, "bbox": values, "per_class": per_class}))
    text = console.file.getvalue()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 11 + num_classes
    assert "12.3" in text
    assert "absent" in text
    for i in range(1, num_classes + 1):
        assert f"{i:.1f}" in text
    if num_classes == 80:
        assert text.index(" 80.0") < text.index(" 41.0")
