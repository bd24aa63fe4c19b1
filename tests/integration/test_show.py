"""`vision-stack show`: one picture of what a model will be fed, the same as a run puts into its folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_stack import commands
from vision_stack.data.configs import ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.training.preview import CELL, augmentation_grid

SMALL = ["data.image_size=64", "data.num_train=6", "data.num_val=2"]


def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISION_STACK_CACHE", str(tmp_path / "cache"))
    return commands.main(["show", *words])


def test_picture_has_a_row_for_each_image_and_is_that_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path, monkeypatch, *SMALL, "augment=strong", "rows=2", "out=a b.png", "seed=5") == 0
    printed = capsys.readouterr().out
    assert "data.train_transform.copy_paste 0.5 (auto: objects have masks)" in printed
    assert "wrote a b.png: 2 of 6 training images, before and after" in printed
    picture = Image.open(tmp_path / "a b.png")
    assert picture.width > 4 * CELL
    assert picture.height > 2 * CELL
    assert not (tmp_path / "outputs").exists()

    config = ShapesDataConfig(root=str(tmp_path / "cache" / "shapes"), image_size=64, num_train=6, num_val=2)
    plain = augmentation_grid(build_datamodule(config, 5), 2)
    shown = np.asarray(picture)[:CELL, : CELL // 2]
    assert np.array_equal(shown[30:], np.asarray(plain)[30:CELL, : CELL // 2])  # before: the same
    assert not np.array_equal(np.asarray(picture)[:, -CELL:], np.asarray(plain)[:, -CELL:])


@pytest.mark.parametrize("task", ["detection", "semantic", "panoptic"])
def test_every_task_can_be_shown(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = ["head=faster_rcnn"] if task == "detection" else []
    assert show(tmp_path, monkeypatch, *SMALL, f"task={task}", *head, "augment=strong", "rows=1", "out=x.jpg") == 0
    assert Image.open(tmp_path / "x.jpg").width > 4 * CELL


def test_folder_can_be_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(tmp_path, monkeypatch, *SMALL, "rows=1") == 0
    (folder,) = (tmp_path / "cache" / "shapes").iterdir()
    assert show(tmp_path, monkeypatch, str(folder), "data.format=coco", "augment=lsj", "rows=1", "out=own.jpg") == 0
    assert (tmp_path / "own.jpg").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rows=0"], "rows=0: expected a number of images, 1 to 20"),
        (["out=a.gif"], "out: a.gif is not the name of a picture; end it in .jpg or .png"),
        (["augment=strng"], "unknown augment 'strng'; did you mean 'strong'?"),
        (
            ["augment.mosaik=1"],
            "data.train_transform.mosaik: unknown option; did you mean",
        ),
        (["task=semantic", "augment.copy_paste=1"], "data.train_transform.copy_paste: task=semantic has no single"),
        (["nothing"], "'nothing' is not an option"),
    ],
)
def test_mistake_is_one_line(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert show(tmp_path, monkeypatch, *SMALL, *words) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith(f"error: {expected}")


def test_folder_of_label_maps_is_shown_with_the_task_that_training_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / "data" / folder / part).mkdir(parents=True)
        for name, seed in (("a", 0), ("b", 1)):
            pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "images" / part / f"{name}.jpg")
            Image.fromarray(pixels[..., 0] // 128).save(tmp_path / "data" / "labels" / part / f"{name}.png")
    (tmp_path / "data" / "classes.txt").write_text("0 sky\n1 ground\n")
    assert show(tmp_path, monkeypatch, str(tmp_path / "data"), "rows=1") == 0
    assert "semantic: what the data has; task=NAME chooses another" in capsys.readouterr().out
