import pytest

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
