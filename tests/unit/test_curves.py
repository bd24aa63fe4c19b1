"""The picture of a run's losses, scores and learning rate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vision_stack.visualization.curves import plot_curves


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def watched(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", watched)
    return saved


def write(path: Path, *rows: str) -> Path:
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    return path / "metrics.csv"


def test_curves_sparse_csv_writes_a_picture(tmp_path: Path) -> None:
    rows = ["epoch,step,train/loss,train/loss_mask,val/segm_AP,lr"]
    rows += [f"0,{step},{3 - step / 50},{2 - step / 50},,0.1" for step in range(0, 100, 10)]
    rows += ["0,49,,,0.1,", "1,99,,,0.3,", "1,100,nan,,,"]
    plot_curves(write(tmp_path, *rows), tmp_path / "pictures" / "curves.png")
    with Image.open(tmp_path / "pictures" / "curves.png") as picture:
        assert picture.width > 1.5 * picture.height  # three panels
        assert np.array(picture.convert("L")).std() > 5


def test_curves_of_a_short_run_have_the_learning_rate_in_a_panel_of_its_own(
    tmp_path: Path, figure: list[Figure]
) -> None:
    rows = ["epoch,step,train/loss,train/lr", *(f"0,{step},{3 - step / 10},{step / 1000}" for step in range(10))]
    plot_curves(write(tmp_path, *rows), tmp_path / "curves.png")
    assert [axes.get_title() for axes in figure[0].axes] == ["loss", "learning rate"]
    for axes in figure[0].axes:
        (line,) = axes.get_lines()
        assert list(line.get_xdata()) == list(range(10))
        assert line.get_marker() == "o"
        assert axes.get_xlim()[0] == pytest.approx(-0.18)
        assert axes.get_xlim()[1] == pytest.approx(9.18)
        assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("parts", [1, 7])
def test_legends_cover_no_line(parts: int, tmp_path: Path, figure: list[Figure]) -> None:
    names = ",".join(f"train/loss_part_{letter}" for letter in "abcdefg"[:parts])
    rows = [f"epoch,step,train/loss,{names},val/segm_AP"]
    rows += [f"0,{step},{step + 1}{f',{step + 0.1}' * parts}," for step in range(10)]
    rows += [f"0,9,{',' * (parts + 1)}0.25"]
    plot_curves(write(tmp_path, *rows), tmp_path / "curves.png")
    for axes in figure[0].axes:
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y1 <= axes.get_xaxis().get_tightbbox().y1  # below the axis
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0
    assert [text.get_text() for text in figure[0].axes[1].get_legend().get_texts()] == ["val/segm_AP, best 0.250"]


@pytest.mark.parametrize(("low", "high"), [(2.1, 6.6), (0.03, 90.0), (0.5, 6.0), (9.8, 10.2), (5.0, 5.0)])
def test_loss_axis_has_some_ticks_that_are_plain_numbers(
    low: float, high: float, tmp_path: Path, figure: list[Figure]
) -> None:
    plot_curves(write(tmp_path, "epoch,step,train/loss", f"0,0,{high}", f"0,1,{low}"), tmp_path / "curves.png")
    (axes,) = figure[0].axes
    bottom, top = axes.get_ylim()
    texts = [
        label.get_text()
        for label in axes.get_yticklabels(which="both")
        if bottom <= label.get_position()[1] <= top and label.get_text()
    ]
    assert 2 <= len(texts) <= 12
    assert all(float(text) >= 0 for text in texts)  # "0.5", not "$5 \\times 10^{-1}$"


def test_curves_without_columns_to_draw_say_so(tmp_path: Path) -> None:
    file = write(tmp_path, "epoch,step,lr", "0,1,0.1")
    with pytest.raises(ValueError, match="no column with values is named after a loss, AP, PQ, mIoU; found: lr"):
        plot_curves(file, tmp_path / "curves.png")
    file = write(tmp_path, "a,b", "0,1")
    with pytest.raises(ValueError, match="no column 'step'"):
        plot_curves(file, tmp_path / "curves.png")
