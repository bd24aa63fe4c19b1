"""The generated data set: the same again, true annotations, no toy, and safe to write from several processes."""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vision_stack.config import ConfigError
from vision_stack.data.configs import ShapesDataConfig
from vision_stack.data.readers.coco import read_coco
from vision_stack.data.shapes import generate as shapes
from vision_stack.data.shapes.generate import CATEGORY_IDS, annotate, generate_shapes, generate_tiny_shapes
from vision_stack.data.shapes.render import (
    CATEGORIES,
    MIN_VISIBLE_FRACTION,
    MIN_VISIBLE_PIXELS,
    NUM_COLORS,
    Scene,
    _move,
    _unit_loops,
    adjacent_labels,
    coverage,
    draw_scene,
    rasterize,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed=0, split="val", index=index) for index in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_tiny_shapes(tmp_path_factory.mktemp("shapes"))


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_generate_same_parameters_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = hashes(generate_tiny_shapes(tmp_path))
    assert again == hashes(folder)
    assert len(again) == 3 * (8 + 4) + 2 * 2 + 1  # image and two label maps; two jsons a split; the table of classes


def test_generate_more_images_keeps_the_first_ones(folder: Path, tmp_path: Path) -> None:
    more = generate_shapes(tmp_path, image_size=64, num_train=9, num_val=5, max_objects=4)
    assert more.name != folder.name
    fewer, pixels = hashes(folder), hashes(more)
    assert all(pixels[name] == digest for name, digest in fewer.items() if name.endswith(".jpg"))


def test_generate_no_image_occurs_twice(folder: Path, tmp_path: Path) -> None:
    other_seed = generate_tiny_shapes(tmp_path, seed=1)
    digests = [d for f in (folder, other_seed) for name, d in hashes(f).items() if name.endswith(".jpg")]
    assert len(set(digests)) == len(digests) == 24


@pytest.mark.parametrize("split", ["train", "val"])
def test_generated_split_passes_the_reader_without_a_remark(folder: Path, split: str) -> None:
    read = read_coco(folder / "annotations" / f"instances_{split}.json", folder / split)
    assert not read.problems
    assert not read.notes
    assert [(c.id, c.name) for c in read.categories] == list(zip(CATEGORY_IDS, CATEGORIES, strict=True))
    assert len(read.records) == {"train": 8, "val": 4}[split]
    for record in read.records:
        assert (record.height, record.width) == (64, 64)


def test_annotations_decode_to_the_visible_parts(scenes: list[Scene]) -> None:
    kinds = set()
    for scene in scenes[:60]:
        for label, annotation in enumerate(annotate(scene), start=1):
            segmentation = annotation["segmentation"]
            kinds.add(type(segmentation))
            if isinstance(segmentation, list):
                (segmentation,) = coco_mask.frPyObjects(segmentation, 128, 128)
            mask = coco_mask.decode(segmentation).astype(bool)
            assert (mask == (scene.label_map == label)).all()  # to the pixel, and hence disjoint
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum()
            assert annotation["category_id"] == CATEGORY_IDS[scene.shapes[label - 1].category]
    assert kinds == {list, dict}  # polygons and RLE


def test_scenes_every_shape_is_visible_enough(scenes: list[Scene]) -> None:
    for scene in scenes:
        visible = np.bincount(scene.label_map.ravel(), minlength=len(scene.shapes) + 1)[1:]
        for shape, pixels in zip(scene.shapes, visible, strict=True):
            assert pixels >= MIN_VISIBLE_PIXELS
            assert pixels >= MIN_VISIBLE_FRACTION * shape.size**2


def test_scenes_are_crowded_as_asked(scenes: list[Scene]) -> None:
    counts = [len(scene.shapes) for scene in scenes]
    assert set(counts) == set(range(7))
    assert 0.005 <= np.mean(np.equal(counts, 0)) <= 0.08  # drawn with 3%, which is 6 +- 2.4 of these 200


def test_scenes_same_class_and_color_touch_in_three_images_of_ten(scenes: list[Scene]) -> None:
    def touching_twins(scene: Scene) -> bool:
        kinds = [(shape.category, shape.color) for shape in scene.shapes]
        return any(kinds[a - 1] == kinds[b - 1] for a, b in adjacent_labels(scene.label_map))

    assert np.mean([touching_twins(scene) for scene in scenes]) >= 0.3


def test_scenes_every_class_comes_in_every_color(scenes: list[Scene]) -> None:
    kinds = {(shape.category, shape.color) for scene in scenes for shape in scene.shapes}
    assert kinds == {(category, color) for category in range(len(CATEGORIES)) for color in range(NUM_COLORS)}


@pytest.mark.parametrize("category", CATEGORIES)
def test_coverage_lies_where_the_mask_lies(category: str) -> None:
    rng = np.random.default_rng(0)
    offsets: list[float] = []
    ratios: list[float] = []
    (outline, *_) = _unit_loops(rng, category)
    for _ in range(40):
        loops = (_move(outline, 9, rng.uniform(0, 6), *rng.uniform(28, 36, 2)),)
        mask, drawn = rasterize(loops, 64, 64), np.asarray(coverage(loops, 64, 64)) / 255
        offsets += [(axis * drawn).sum() / drawn.sum() - axis[mask].mean() for axis in np.indices(mask.shape)]
        ratios.append(drawn.sum() / mask.sum())
    assert abs(np.mean(offsets)) < 0.08  # no bias; a convention off by half a pixel of the supersampling gives 0.17
    assert abs(np.mean(ratios) - 1) < 0.05  # Pillow draws a contour up to half a sample wide, 0.02 to 0.03 here


def test_rasterize_ring_has_a_hole() -> None:
    rng = np.random.default_rng(0)
    mask = rasterize(tuple(20 * loop + 32 for loop in _unit_loops(rng, "ring")), 64, 64)
    assert not mask[32, 32]
    assert mask[32, 32 + 16]


def test_adjacent_labels_diagonal_counts_gap_does_not() -> None:
    label_map = np.array([[1, 0, 3], [0, 2, 0], [0, 0, 0], [4, 4, 0]], np.int32)
    assert adjacent_labels(label_map) == {(1, 2), (2, 3)}


def test_generate_complete_folder_is_reused(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert generate_tiny_shapes(folder.parent) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_generate_incomplete_folder_is_replaced(folder: Path, tmp_path: Path) -> None:
    damaged = generate_tiny_shapes(tmp_path)
    (damaged / "val" / "000002.jpg").unlink()
    generate_tiny_shapes(tmp_path)
    assert hashes(damaged) == hashes(folder)


def test_generate_at_the_same_time_gives_one_complete_folder(folder: Path, tmp_path: Path) -> None:
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(generate_tiny_shapes(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / folder.name] * 4
    assert list(tmp_path.iterdir()) == [tmp_path / folder.name]
    assert hashes(results[0]) == hashes(folder)


def test_generate_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_late(*, split: str, index: int, **options: int) -> Scene:
        if (split, index) == ("val", 1):
            raise KeyboardInterrupt
        return draw_scene(split=split, index=index, **options)

    monkeypatch.setattr(shapes, "draw_scene", fail_late)
    with pytest.raises(KeyboardInterrupt):
        generate_tiny_shapes(tmp_path)
    assert not list(tmp_path.iterdir())


GENERATE = """
import sys
from pathlib import Path
from vision_stack.data.shapes import generate as shapes

shapes.SCENES_PER_PROCESS = 5  # several processes
shapes.os.sched_getaffinity = lambda _: {0, 1}
shapes.generate_shapes(Path(sys.argv[1]), image_size=32, num_train=100_000, num_val=1)
"""


def test_generate_after_kill_9_removes_what_was_left_but_not_what_is_being_written(tmp_path: Path) -> None:
    running = subprocess.Popen([sys.executable, "-c", GENERATE, str(tmp_path)])
    killed = subprocess.Popen([sys.executable, "-c", GENERATE, str(tmp_path)])
    try:
        for process in (running, killed):
            wait_for(functools.partial(has_helpers, process.pid))
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        left = children(killed.pid)
        killed.kill()
        killed.wait()
        wait_for(lambda: not any(is_alive(pid) for pid in left))  # its helpers end with it
        folder = generate_tiny_shapes(tmp_path)
        (other,) = set(tmp_path.iterdir()) - {folder}
        before = len(list(other.rglob("*.jpg")))
        wait_for(lambda: len(list(other.rglob("*.jpg"))) > before)  # of the one that is running
    finally:
        left = children(running.pid)
        running.kill()
        running.wait()
        killed.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in left))


STOPPED = f"""
from vision_stack.training.interrupts import Stopped, stopping_on_signals

try:
    with stopping_on_signals():
        {GENERATE.strip().replace(chr(10), chr(10) + "        ")}
except Stopped as stop:
    print(stop)
"""


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["it", "its_group"])
def test_generate_stopped_by_a_signal_leaves_no_traceback_and_no_process(kill: Any, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(functools.partial(has_helpers, process.pid))
        wait_for(lambda: any(tmp_path.rglob("*.jpg")))
        left = children(process.pid)
        kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=30) == ("stopped by SIGTERM\n", "")
    finally:
        process.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in left))
    assert list(tmp_path.iterdir()) == []


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def has_helpers(pid: int) -> bool:
    return len(children(pid)) == 2


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_generate_on_a_full_disk_is_one_line_that_names_the_folder_and_where_to_choose_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\).*VISION_STACK_CACHE") as error:
        generate_tiny_shapes(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_generate_info_names_version_and_parameters(folder: Path) -> None:
    info = json.loads((folder / "annotations" / "instances_val.json").read_text())["info"]
    assert info["version"] == str(shapes.FORMAT_VERSION)
    assert info["image_size"] == 64


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"image_size": 16}, {"num_train": 0}, {"num_val": 0}, {"min_objects": 0}, {"max_objects": 0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_generate_parameter_out_of_range_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    options = {"num_train": 1, "num_val": 1, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate_shapes(tmp_path, **options)


def test_scenes_drawn_by_several_processes_are_those_of_one(tmp_path, monkeypatch):
    options = {"image_size": 32, "num_train": 12, "num_val": 1, "max_objects": 2}
    one = generate_shapes(tmp_path / "one", **options)
    monkeypatch.setattr("vision_stack.data.shapes.generate.SCENES_PER_PROCESS", 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    several = generate_shapes(tmp_path / "several", **options)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) > 3 * 13
    assert all((one / file).read_bytes() == (several / file).read_bytes() for file in files)


def test_generated_scenes_are_not_written_among_files_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    config = ShapesDataConfig(root=str(tmp_path), num_train=1, num_val=1, image_size=32)
    with pytest.raises(ConfigError, match=r"root: .* holds other files \(photos, ...\).*write data="):
        config.folder()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    empty = ShapesDataConfig(root=str(tmp_path / "photos"), num_train=1, num_val=1, image_size=32)
    assert empty.folder() == empty.folder()  # generated, and found again
