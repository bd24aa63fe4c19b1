"""PQ by hand, against panopticapi's rules written plainly, and what the evaluator writes."""

import io
import json
import types

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vision_stack.metrics import PanopticEvaluator
from vision_stack.metrics.panoptic import segment_counts, shared_pixels
from vision_stack.ops.label_maps import rgb_to_ids
from vision_stack.structures import Category, PanopticSegmentation

CATEGORIES = (Category(id=7, name="cat"), Category(id=3, name="dog"), Category(id=90, name="sky", is_thing=False))
CAT, DOG, SKY = range(3)


def segmentation(rows, labels):
    """A map of one character per pixel: '.' is not a segment, '1' the first one."""
    pixels = [[0 if c == "." else int(c) for c in row] for row in rows]
    return PanopticSegmentation(
        torch.tensor(pixels, dtype=torch.int32), torch.tensor(labels, dtype=torch.int64), torch.ones(len(labels))
    )


def truth(rows, labels, crowd=()):
    flags = np.zeros(len(labels), bool)
    flags[list(crowd)] = True
    return types.SimpleNamespace(segmentation=segmentation(rows, labels), is_crowd=flags)


def evaluate(*pairs):
    evaluator = PanopticEvaluator({n: true for n, (true, _) in enumerate(pairs)}, CATEGORIES)
    for n, (_, found) in enumerate(pairs):
        evaluator.update(n, found)
    return evaluator.compute()


def counts(true, found):
    """{class: (TP, FP, FN, summed IoU)} of the classes that occur."""
    shared = shared_pixels(true.segmentation, found)
    table = segment_counts(shared, true.segmentation, true.is_crowd, found, 3)
    return {label: tuple(table[:, label]) for label in range(3) if table[:, label].any()}


SCENE = ["1111222233", "1111222233"]  # areas 8, 8, 4


def test_perfect_is_one_for_things_and_stuff():
    metrics = evaluate(
        (truth(SCENE, [CAT, DOG, SKY]), segmentation(["2222113333"[:10], "2222113333"], [DOG, CAT, SKY]))
    )
    assert metrics["things"]["PQ"] < 1  # another scene, for contrast
    metrics = evaluate((truth(SCENE, [CAT, DOG, SKY]), segmentation(["3333111122"] * 2, [DOG, SKY, CAT])))
    for kind, classes in (("all", 3), ("things", 2), ("stuff", 1)):
        assert metrics[kind] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0, "classes": classes}


def test_void_pixels_of_the_truth_are_no_part_of_the_union_and_forgive_what_lies_on_them():
    true = truth(["1111......", "1111......"], [CAT])
    grown = segmentation(["111111....", "111111...."], [CAT])  # IoU 8 / 8, as its 4 other pixels are void
    assert counts(true, grown) == {CAT: (1, 0, 0, 1.0)}
    on_void = segmentation(["1111.2222.", "1111.2222."], [CAT, DOG])  # a dog that only void holds
    assert counts(true, on_void) == {CAT: (1, 0, 0, 1.0)}
    half = truth(["1111222...", "1111222..."], [CAT, SKY])
    on_both = segmentation(["1111222222"] * 2, [CAT, DOG])  # 6 on sky, 6 on void: not more than half
    assert counts(half, on_both) == {CAT: (1, 0, 0, 1.0), DOG: (0, 1, 0, 0.0), SKY: (0, 0, 1, 0.0)}


def test_crowd_is_neither_missed_nor_false_for_its_own_class():
    true = truth(["1111222233"] * 2, [CAT, DOG, SKY], crowd=[DOG])
    found = segmentation(["1111223344"] * 2, [CAT, DOG, DOG, SKY])  # two dogs in the crowd of dogs
    assert counts(true, found) == {CAT: (1, 0, 0, 1.0), SKY: (1, 0, 0, 1.0)}
    nothing_there = segmentation(["1111....33"] * 2, [CAT, DOG, SKY])
    assert counts(true, nothing_there) == {CAT: (1, 0, 0, 1.0), SKY: (1, 0, 0, 1.0)}
    cats = segmentation(["1111223344"] * 2, [CAT, CAT, CAT, SKY])  # other classes on a crowd are false
    assert counts(true, cats) == {CAT: (1, 2, 0, 1.0), SKY: (1, 0, 0, 1.0)}


def test_split_object_matches_the_half_above_one_half_or_none():
    true = truth(["1111111111"], [CAT])
    assert counts(true, segmentation(["1111112222"], [CAT, CAT])) == {CAT: (1, 1, 0, 0.6)}
    assert counts(true, segmentation(["1111122222"], [CAT, CAT])) == {CAT: (0, 2, 1, 0.0)}  # exactly 0.5 is not a match
    pq = evaluate((true, segmentation(["1111112222"], [CAT, CAT])))["per_class"]["cat"]
    assert pq == pytest.approx({"PQ": 0.6 / 1.5, "SQ": 0.6, "RQ": 1 / 1.5, "TP": 1, "FP": 1, "FN": 0})


def test_merged_objects_match_the_larger_one_alone():
    true = truth(["1111112222"], [CAT, CAT])
    assert counts(true, segmentation(["1111111111"], [CAT])) == {CAT: (1, 0, 1, 0.6)}
    assert counts(truth(["1111122222"], [CAT, CAT]), segmentation(["1111111111"], [CAT])) == {CAT: (0, 1, 2, 0.0)}


def test_wrong_class_is_missed_and_false():
    true, found = truth(["11112222.."], [CAT, DOG]), segmentation(["11112222.."], [CAT, CAT])
    assert counts(true, found) == {CAT: (1, 1, 0, 1.0), DOG: (0, 0, 1, 0.0)}


def test_images_accumulate_before_the_ratio_and_absent_classes_do_not_count():
    good = (truth(["1111111111"], [CAT]), segmentation(["1111111111"], [CAT]))
    bad = (truth(["1111111111"], [CAT]), segmentation(["........22"], [DOG, CAT]))
    metrics = evaluate(good, good, bad)
    # TP 2 (IoU 1 each), FP 1, FN 1: PQ = 2 / (2 + 1/2 + 1/2), not the mean of 1, 1, 0; a dog without pixels is none
    assert metrics["per_class"]["cat"]["PQ"] == pytest.approx(2 / 3)
    assert metrics["all"]["classes"] == 1
    assert metrics["stuff"] == {"PQ": None, "SQ": None, "RQ": None, "classes": 0}
    assert metrics["per_class"]["sky"]["PQ"] is None


def plain_counts(true, crowd, found):
    """panopticapi's `pq_compute_single_core`, as its rules say."""
    table = np.zeros((4, 3))
    t, f = true.segment_map.numpy(), found.segment_map.numpy()
    matched_true, matched_found = set(), set()
    for i, label in enumerate(true.labels.tolist(), 1):
        for j, other in enumerate(found.labels.tolist(), 1):
            inter = int(((t == i) & (f == j)).sum())
            if not inter or crowd[i - 1] or label != other:
                continue
            union = int((t == i).sum()) + int((f == j).sum()) - inter - int(((t == 0) & (f == j)).sum())
            if inter / union > 0.5:
                table[0, label] += 1
                table[3, label] += inter / union
                matched_true.add(i)
                matched_found.add(j)
    for i, label in enumerate(true.labels.tolist(), 1):
        if i not in matched_true and not crowd[i - 1]:
            table[2, label] += 1
    for j, label in enumerate(found.labels.tolist(), 1):
        if j in matched_found:
            continue
        forgiven = int(((t == 0) & (f == j)).sum())
        for i, other in enumerate(true.labels.tolist(), 1):
            if crowd[i - 1] and other == label:
                forgiven += int(((t == i) & (f == j)).sum())
        if forgiven / int((f == j).sum()) <= 0.5:
            table[1, label] += 1
    return table


@pytest.mark.parametrize("seed", range(8))
def test_random_maps_equal_the_plain_rules(seed):
    rng = np.random.default_rng(seed)

    def draw():
        grid = rng.integers(0, 8, (6, 6)).repeat(7, 0).repeat(7, 1)
        ids, packed = np.unique(grid, return_inverse=True)
        packed = packed.reshape(grid.shape)
        return packed.astype(np.int32), len(ids) - 1

    t, num_true = draw()
    noise = rng.random(t.shape) < 0.3
    f = np.where(noise, draw()[0], t)
    f = np.unique(f, return_inverse=True)[1].reshape(t.shape).astype(np.int32)
    true = PanopticSegmentation(
        torch.from_numpy(t), torch.from_numpy(rng.integers(0, 3, num_true)), torch.ones(num_true)
    )
    labels = np.resize(true.labels.numpy(), f.max())
    found = PanopticSegmentation(torch.from_numpy(f), torch.from_numpy(labels), torch.ones(len(labels)))
    crowd = rng.random(num_true) < 0.2
    table = segment_counts(shared_pixels(true, found), true, crowd, found, 3)
    np.testing.assert_allclose(table, plain_counts(true, crowd, found), rtol=0, atol=1e-12)
    assert table.any()


def test_report_has_pixels_by_class_without_void_and_crowds_and_what_no_segment_covers():
    true = truth(["11112233.."] * 2, [CAT, DOG, SKY], crowd=[DOG])
    found = segmentation(["1122221133"] * 2, [CAT, CAT, SKY])  # half of the cat by each segment; sky taken for a cat
    evaluator = PanopticEvaluator({0: true, 1: true}, CATEGORIES)
    evaluator.update(0, found)
    evaluator.update(1, segmentation(["1122......"] * 2, [CAT, SKY]))
    metrics = evaluator.compute()
    report = evaluator.report(metrics)
    assert list(zip(*(column.tolist() for column in report.confusion), strict=True)) == [
        (CAT, CAT, 8 + 4),
        (CAT, SKY, 4),
        (SKY, CAT, 4),
        (SKY, 3, 4),  # nothing
    ]
    assert (report.unit, report.score_name) == ("pixels", "PQ")
    assert report.class_scores == {
        name: values["PQ"] for name, values in metrics["per_class"].items() if values["PQ"] is not None
    }


def test_results_carry_original_ids_and_decode_to_the_same_map():
    found = segmentation(SCENE, [CAT, DOG, SKY])
    evaluator = PanopticEvaluator({5: truth(SCENE, [CAT, DOG, SKY])}, CATEGORIES)
    evaluator.update(5, found)
    results = json.loads(json.dumps(evaluator.results()))
    (record,) = results["annotations"]
    assert record["image_id"] == 5
    assert [(s["id"], s["category_id"], s["isthing"], s["area"]) for s in record["segments_info"]] == [
        (1, 7, 1, 8),
        (2, 3, 1, 8),
        (3, 90, 0, 4),
    ]
    assert results["categories"][2] == {"id": 90, "name": "sky", "isthing": 0}
    png = Image.open(io.BytesIO(evaluator.files()[record["file_name"]]))
    assert np.array_equal(rgb_to_ids(np.asarray(png)), found.segment_map.numpy())


def test_images_not_fed_count_as_missed_unless_left_out_and_ranks_merge():
    true = truth(["1111111111"], [CAT])
    first, second = (PanopticEvaluator({1: true, 2: true}, CATEGORIES) for _ in range(2))
    first.update(1, true.segmentation)
    assert first.compute()["per_class"]["cat"]["FN"] == 1
    assert first.compute(only_updated=True)["all"]["PQ"] == 1.0
    second.update(2, true.segmentation)
    second.merge([first.state()])
    assert second.compute()["per_class"]["cat"]["TP"] == 2
    first.reset()
    assert first.compute()["all"]["PQ"] == 0.0
    with pytest.raises(ValueError, match="image id 9 is not in the ground truth"):
        first.update(9, true.segmentation)
    with pytest.raises(ValueError, match="size"):
        first.update(1, segmentation(["11"], [CAT]))


def test_table_fits_a_terminal_of_80_columns():
    evaluator = PanopticEvaluator({}, tuple(Category(id=n, name=f"a class of name {n} " * 3) for n in range(40)))
    metrics = evaluator.compute()
    for values in metrics["per_class"].values():
        values.update(PQ=0.5, SQ=1.0, RQ=0.5)
    with io.StringIO() as text:
        Console(file=text, width=80).print(evaluator.table(metrics))
        lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines if "50.0" not in line)
