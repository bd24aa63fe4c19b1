import pytest
import torch

from vision_stack.training import start
from vision_stack.weights.class_names import SYNONYMS, fold, match_classes

KNOWN = ["person", "car", "dining table", "bus", "knife", "tree-merged", "potted plant", "tv", "glass"]


@pytest.mark.parametrize(
    ("name", "known", "how"),
    [
        ("person", "person", "same name"),
        ("Person ", "person", "spelling"),
        ("cars", "car", "spelling"),
        ("Dining_Tables", "dining table", "spelling"),
        ("buses", "bus", "spelling"),
        ("knives", "knife", "spelling"),
        ("trees", "tree-merged", "spelling"),
        ("glasses", "glass", "spelling"),
        ("houses", None, "new"),
        ("pedestrian", "person", "synonym"),
        ("men", "person", "synonym"),
        ("Automobiles", "car", "synonym"),
        ("tvmonitor", "tv", "synonym"),
        ("carpet", None, "new"),
        ("cart", None, "new"),
    ],
)
def test_match_classes_finds_the_same_thing_and_says_how(name, known, how):
    (match,) = match_classes([name], KNOWN)
    assert (None if match.source is None else KNOWN[match.source], match.how) == (known, how)


def test_match_classes_prefers_the_very_same_name():
    assert [m.source for m in match_classes(["cars", "car"], ["car", "cars"])] == [1, 0]


def test_match_classes_of_one_model_class_for_two_of_the_data():
    assert [m.source for m in match_classes(["man", "woman"], KNOWN)] == [0, 0]


def test_synonyms_no_name_stands_in_two_groups():
    names = [fold(name) for group in SYNONYMS for name in dict.fromkeys(map(fold, group))]
    assert sorted(names) == sorted(set(names))


CLASSES = match_classes(["cat", "unicorn", "dog"], ["dog", "bird", "cat", "cow"])


@pytest.mark.parametrize(
    ("first", "rows_each", "rest"),
    [(0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 4, 4)],
    ids=["one a class", "no object last", "background first", "box regression, background first"],
)
def test_rows_of_known_classes_are_taken_over_wherever_they_stand(first, rows_each, rest):
    def rows(num_classes):
        return first * rows_each + torch.arange(num_classes * rows_each).view(num_classes, rows_each)

    theirs = torch.arange(4 * rows_each + rest)[:, None] + torch.zeros(2)
    own = -torch.ones(3 * rows_each + rest, 2)
    taken = start._rows(own, rows(3), theirs, rows(4), CLASSES)
    assert torch.equal(taken[rows(3)[0]], theirs[rows(4)[2]])  # cat
    assert torch.equal(taken[rows(3)[2]], theirs[rows(4)[0]])  # dog
    assert (taken[rows(3)[1]] == -1).all()
    of_no_class = sorted(set(range(len(own))) - set(rows(3).flatten().tolist()))
    assert (taken[of_no_class] >= 0).all()


def test_rows_of_every_anchor_are_taken_over_and_other_counts_of_them_are_not():
    def rows(num_classes, anchors):
        return torch.arange(num_classes)[:, None] + num_classes * torch.arange(anchors)

    theirs, own = torch.arange(12.0)[:, None], -torch.ones(9, 1)
    taken = start._rows(own, rows(3, 3), theirs, rows(4, 3), CLASSES)
    assert taken.flatten().tolist() == [2, -1, 0, 6, -1, 4, 10, -1, 8]
    assert start._rows(-torch.ones(6, 1), rows(3, 2), theirs, rows(4, 3), CLASSES) is None
