"""A validation split out of the training images: a share of every class, and what belongs together stays together."""

import json
import shutil
from pathlib import Path
from typing import Any

import format_files as ff
import numpy as np
import pytest
from PIL import Image

from vision_stack.config import ConfigError
from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import AutoDataConfig
from vision_stack.data.datamodule import build_datamodule


def write(root: Path, count: int = 40, rare: int = 10) -> Path:
    """Images of noise with a cat each, and a dog in the first `rare`."""
    images = {f"v{n % 8}_{n:03d}": [ff.CAT, *([ff.DOG] if n < rare else [])] for n in range(count)}
    for name in images:
        ff.photo(root / "data" / f"{name}.jpg")
    ff.text(root / "labels.json", ff.coco(images))
    return root


def split(root: Path, **options: Any) -> tuple[list[str], list[str]]:
    config = AutoDataConfig(root=str(root), **options)
    train, val = (config.read(name, "instance").records for name in ("train", "val"))
    return [record.file_name for record in train], [record.file_name for record in val]


def test_every_image_is_in_one_of_both_and_every_class_has_its_share(tmp_path: Path) -> None:
    train, val = split(write(tmp_path))
    assert len(val) == 8
    assert not set(train) & set(val)
    assert len(train) + len(val) == 40
    assert sum(int(name[3:6]) < 10 for name in val) == 2


def test_split_depends_on_the_seed_and_not_on_the_order_of_images(tmp_path: Path) -> None:
    first = split(write(tmp_path))[1]
    assert split(tmp_path)[1] == first
    assert set(split(tmp_path, split_seed=1)[1]) != set(first)
    content = json.loads((tmp_path / "labels.json").read_text())
    content["images"].reverse()
    ff.text(tmp_path / "labels.json", content)
    assert set(split(tmp_path)[1]) == set(first)


def test_share_can_be_given_and_goes_before_a_split_that_is_there(tmp_path: Path) -> None:
    assert len(split(write(tmp_path), val_fraction=0.5)[1]) == 20
    ff.coco_2017(tmp_path / "other")
    assert split(tmp_path / "other")[1] == ["d.jpg"]
    assert split(tmp_path / "other", val_fraction=0.3)[1] != ["d.jpg"]


def test_images_of_one_video_stay_together(tmp_path: Path) -> None:
    train, val = split(write(tmp_path), group_by=r"^(v\d)_")
    assert val
    assert not {name[:2] for name in train} & {name[:2] for name in val}


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("(", r"data\.group_by: '\(' is not a pattern \(.*\); correct it"),
        ("z(.)", r"matches no file name, such as 'v0_000"),
    ],
)
def test_pattern_that_cannot_be_used_is_one_line(pattern: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=line):
        split(write(tmp_path), group_by=pattern)


def test_copies_and_near_duplicates_stay_with_their_originals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = []
    for n in range(12):
        rough = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((ff.WIDTH, ff.HEIGHT), 3)
        pixels = np.asarray(rough).astype(np.int16)
        for kind, image in (
            ("a", pixels),
            ("b", pixels),
            ("c", np.clip(pixels + rng.integers(-2, 3, pixels.shape), 0, 255)),
        ):
            names.append(f"{kind}{n:02d}")
            (tmp_path / "data").mkdir(exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "data" / f"{names[-1]}.png")
    ff.text(tmp_path / "labels.json", ff.coco({name: [ff.CAT] for name in names}, ".png"))
    train, val = split(tmp_path)
    assert len(val) == 6
    assert not {name[1:] for name in train} & {name[1:] for name in val}
    notes = AutoDataConfig(root=str(tmp_path)).read("val", "instance").notes
    assert "12 copies stay with their originals; 12 near-duplicates stay together" in str(notes[-1])


def test_scenes_that_never_change_are_split_and_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = np.asarray(Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((64, 48), 3)).astype(
        np.int16
    )
    names = [f"{n:02d}" for n in range(20)]
    (tmp_path / "data").mkdir()
    for name in names:
        noisy = np.clip(scene + rng.integers(-2, 3, scene.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "data" / f"{name}.png")
    ff.text(tmp_path / "labels.json", ff.coco({name: [ff.CAT] for name in names}, ".png"))
    assert len(split(tmp_path)[1]) == 4
    notes = AutoDataConfig(root=str(tmp_path)).read("val", "instance").notes
    assert "20 images look alike and are not kept together: give data.group_by=PATTERN" in str(notes[-1])


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is only one image, so nothing can be held out; add more images"):
        split(write(tmp_path, count=1))
    shutil.copy(tmp_path / "data/v0_000.jpg", tmp_path / "data/copy.jpg")
    ff.text(tmp_path / "labels.json", ff.coco({"v0_000": [ff.CAT], "copy": [ff.CAT]}))
    with pytest.raises(DataError, match=r"only 2 images that belong together"):
        split(tmp_path)


def test_list_of_an_earlier_run_goes_before_the_draw(tmp_path: Path) -> None:
    data = build_datamodule(AutoDataConfig(root=str(write(tmp_path)), max_val_images=1))
    held = data.held_out()
    assert len(held) == 8, "all of them, not the first that are validated"
    assert set(held) == {f"data/{name}" for name in split(tmp_path)[1]}
    ff.text(tmp_path / "list.json", {"images": ["data/v1_001.jpg", "data/v0_008.jpg", "data/gone.jpg"]})
    config = AutoDataConfig(root=str(tmp_path), val_list=str(tmp_path / "list.json"))
    val = config.read("val", "instance")
    assert [record.file_name for record in val.records] == ["v1_001.jpg", "v0_008.jpg"]
    assert "drawn by an earlier run: 2 of 40 images" in str(val.notes[-1])
    assert "1 more are not there" in str(val.notes[-1])
    assert build_datamodule(config).held_out() == []


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{}", "images: expected a list of names, got None"),
        ('{"images": ["x"]}', "none of the 1 images is in the data set"),
    ],
)
def test_list_that_does_not_fit_is_one_line(content: str, line: str, tmp_path: Path) -> None:
    (write(tmp_path) / "list.json").write_text(content)
    with pytest.raises(DataError, match=line):
        split(tmp_path, val_list=str(tmp_path / "list.json"))


def test_broken_records_of_one_file_are_counted_once(tmp_path: Path) -> None:
    content = json.loads((write(tmp_path) / "labels.json").read_text())
    content["annotations"][0]["category_id"] = 9
    ff.text(tmp_path / "labels.json", content)
    data = build_datamodule(AutoDataConfig(root=str(tmp_path), on_error="skip"))
    assert len(data.problems) == 1
    assert not any("one file" in line or "training images, too" in line for line in data.notes())
