"""Pictures of precision and recall, of scores by class and of confusions: what is in them."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vision_stack.visualization import plots


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What would be saved."""
    saved: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: saved.append(figure))
    return saved


def legend(axes: Axes) -> list[str]:
    box = axes.get_legend()
    return [text.get_text() for text in box.get_texts()] if box else []


def constant(precision: float) -> np.ndarray:
    return np.full(101, precision)


def test_precision_recall_of_one_class_is_its_curve_with_the_marked_point(figures: list[Figure]) -> None:
    all_classes = np.array([0.1, 0.5]), np.array([1.0, 0.7])
    plots.plot_precision_recall({"cat": constant(0.4)}, "", all_classes=all_classes, mark=(0.5, 0.7, "best F1 0.58"))
    axes = figures[0].axes[0]
    assert legend(axes) == ["cat 0.400", "not interpolated", "best F1 0.58"]
    assert axes.get_legend().get_title().get_text() == "AP50"
    assert not axes.texts


def test_precision_recall_of_eighty_classes_names_the_mean_the_best_and_the_worst(figures: list[Figure]) -> None:
    curves = {f"class {n}": constant(max(0, n - 40) / 100) for n in range(80)}
    plots.plot_precision_recall(curves, "")
    axes = figures[0].axes[0]
    named = legend(axes)
    assert named[:4] == ["class 79 0.390", "class 78 0.380", "class 77 0.370", "class 76 0.360"]
    assert named[4:8] == ["class 44 0.040", "class 43 0.030", "class 42 0.020", "class 41 0.010"]
    assert named[8:] == ["31 classes between", "mean of 80 classes 0.098"]
    title = axes.get_legend().get_title().get_text()
    assert title.startswith("41 classes with AP50 0:\n  class 0\n")
    assert "and 36 more" in title
    figures[0].canvas.draw()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1  # beside the curves


@pytest.mark.parametrize(("classes", "words"), [(1, "matches an object\n"), (3, "an object of any of the 3 classes")])
def test_precision_recall_where_nothing_matches_says_so(classes: int, words: str, figures: list[Figure]) -> None:
    nothing = np.zeros(2), np.zeros(2)
    plots.plot_precision_recall({f"{n}": constant(0) for n in range(classes)}, "", all_classes=nothing)
    axes = figures[0].axes[0]
    (text,) = axes.texts
    assert words in text.get_text()
    assert "AP50 is 0" in text.get_text()
    assert legend(axes) == []


@pytest.mark.parametrize("count", [2, 40, 41, 500])
def test_class_scores_are_bars_best_first_and_of_many_the_best_and_the_worst(count: int, figures: list[Figure]) -> None:
    plots.plot_class_scores({f"class {n}": n / count for n in range(count)}, "", score_name="PQ")
    axes = figures[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == min(count, 41)
    assert names[0] == f"class {count - 1}"
    assert names[-1] == "class 0"
    assert (f"... {count - 40} classes between" in names) == (count > 40)
    assert axes.get_title() == f"PQ by class, mean {(count - 1) / count / 2:.3f}"


def cells(*each: tuple[int, int, int]) -> plots.Cells:
    true, found, counts = np.array(each, np.int64).reshape(-1, 3).T
    return true, found, counts


def test_confusion_shows_classes_that_occur_most_frequent_first_and_what_is_nothing() -> None:
    names = ["never", "cat", "dog", "only found"]
    grid, rows, columns = plots._grid(cells((1, 1, 5), (1, 4, 1), (2, 1, 7), (2, 2, 3), (4, 3, 2)), names)
    assert rows == ["dog", "cat", "only found", "(no object)"]
    assert columns == ["dog", "cat", "only found", "(not found)"]
    assert grid.tolist() == [[3, 7, 0, 0], [0, 5, 0, 1], [0, 0, 0, 0], [0, 0, 2, 0]]


def test_confusion_of_pixels_has_no_background() -> None:
    grid, rows, columns = plots._grid(cells((0, 0, 5), (1, 0, 1)), ["road", "sky"])
    assert rows == columns == ["road", "sky"]
    assert grid.tolist() == [[5, 0], [1, 0]]


def test_confusion_of_many_classes_has_the_rest_as_other_and_counts_everything() -> None:
    names = [f"class {n}" for n in range(80)]
    table = cells(*((n, n, 100 - n) for n in range(80)), *((n, 80, 1) for n in range(80)), (70, 3, 2))
    grid, rows, columns = plots._grid(table, names)
    assert rows == [*names[:24], "other (56 classes)"]
    assert columns == [*rows, "(not found)"]
    assert grid.sum() == table[2].sum()
    assert grid[24, 3] == 2
    assert grid[3].tolist()[-2:] == [0, 1]
    assert grid[24, 24] == sum(100 - n for n in range(24, 80))


def test_confusion_cells_and_rows_have_counts(figures: list[Figure]) -> None:
    plots.plot_confusion(cells((0, 0, 4_140_000), (0, 1, 35_400), (1, 1, 950)), ["road", "sky"], "", unit="pixels")
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["4.1M", "35k", "950"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road  4.2M", "sky  950"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["road", "sky"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("found", "true, number of pixels")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (9950, "10k"), (999_600, "1.0M")]
)
def test_short_counts_have_four_characters(count: int, text: str) -> None:
    assert plots._short(count) == text


def test_pictures_are_written(tmp_path: Path) -> None:
    plots.plot_confusion(cells((0, 0, 1)), ["a \ud800 \n name"], tmp_path / "a" / "confusion.png")
    plots.plot_precision_recall({"x": constant(0.5), "y": constant(0)}, tmp_path / "curves.png")
    plots.plot_class_scores({"x": 0.5}, tmp_path / "classes.png", score_name="AP")
    for name in ("a/confusion.png", "curves.png", "classes.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300
