"""Noised queries against transformers' RT-DETR, with the same random numbers, in float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from vision_stack.losses.box_matcher import BoxObjects, LayerStack
from vision_stack.losses.denoising import NoisedQueries, attention_between, denoising_matches, noised_queries

NUM_CLASSES, QUERIES = 6, 5
COUNTS = {"several": (3, 0, 7), "more than queries": (2, 40), "one": (0, 1)}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """transformers makes its boxes in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def labels_of(counts: tuple[int, ...]) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    boxes = [torch.cat([0.2 + 0.6 * torch.rand(n, 2), 0.05 + 0.3 * torch.rand(n, 2)], 1) for n in counts]
    return [{"class_labels": torch.randint(NUM_CLASSES, (len(b),)), "boxes": b} for b in boxes]


def objects_of(counts: tuple[int, ...]) -> BoxObjects:
    labels = labels_of(counts)
    return BoxObjects(torch.cat([x["class_labels"] for x in labels]), torch.cat([x["boxes"] for x in labels]), counts)


def noised_of(counts: tuple[int, ...], *, num_denoising: int = 30) -> NoisedQueries:
    objects = objects_of(counts)
    torch.manual_seed(1)
    options = {"num_denoising": num_denoising, "label_noise": 0.5, "box_noise": 1.0}
    return noised_queries(objects, NUM_CLASSES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", COUNTS)
def test_queries_attention_and_matches_equal_rt_detrs(case: str) -> None:
    counts = COUNTS[case]
    noised, targets = noised_of(counts), labels_of(counts)
    torch.manual_seed(1)
    labels, boxes, mask, meta = get_contrastive_denoising_training_group(
        targets, NUM_CLASSES, QUERIES, torch.nn.Identity(), num_denoising_queries=30
    )
    assert torch.equal(noised.labels, labels.long())
    assert (labels != labels[:, :1]).any()
    torch.testing.assert_close(noised.boxes, boxes.sigmoid(), rtol=0, atol=1e-12)
    assert noised.num_groups == meta["dn_num_group"]
    assert torch.equal(attention_between(noised, QUERIES), mask == 0)

    total = noised.labels.shape[1]
    stack = LayerStack(torch.zeros(2, len(counts), total, NUM_CLASSES), torch.zeros(2, len(counts), total, 4))
    matches = denoising_matches(stack, objects_of(counts))
    found = set(zip(*(x.tolist() for x in matches[:4]), strict=True))
    expected, first = set(), 0
    for image, (queries, count) in enumerate(zip(meta["dn_positive_idx"], counts, strict=True)):
        numbers = torch.arange(count).repeat(meta["dn_num_group"])
        pairs = list(zip(queries.tolist(), (numbers + first).tolist(), strict=True))
        expected |= {(layer, image, query, number) for layer in range(2) for query, number in pairs}
        first += count
    assert found == expected
    assert matches.counts == tuple(count * 2 * noised.num_groups for count in counts)


def test_queries_that_are_to_find_their_object_overlap_it_and_the_others_do_less() -> None:
    counts = (4, 2)
    noised, objects = noised_of(counts, num_denoising=400), objects_of(counts)
    wanted = objects.boxes[:4].repeat(2 * noised.num_groups, 1)
    moved = (noised.boxes[0, :, :2] - wanted[:, :2]).abs() / wanted[:, 2:]
    near, far = moved.view(noised.num_groups, 2, 4, 2).mean((0, 2, 3))
    assert near < 0.25 < far
    flipped = (noised.labels[0] != objects.labels[:4].repeat(2 * noised.num_groups)).double().mean()
    assert 0.1 < flipped < 0.3  # a quarter, some of which to the same class


def test_without_any_object_there_are_two_queries_of_no_class_and_no_pair() -> None:
    empty = BoxObjects(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0, 0))
    noised = noised_queries(empty, NUM_CLASSES, num_denoising=100, label_noise=0.5, box_noise=1.0)
    assert noised.labels.tolist() == [[NUM_CLASSES] * 2] * 2
    stack = LayerStack(torch.zeros(3, 2, 2, NUM_CLASSES), torch.zeros(3, 2, 2, 4))
    assert denoising_matches(stack, empty).queries.tolist() == []
