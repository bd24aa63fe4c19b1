"""Which of data and model waits, and what is proposed against it."""

import time
from pathlib import Path

import pytest

from vision_stack.commands import main
from vision_stack.data.configs import CocoDataConfig, ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.training.data_profile import Clock, DataTimes, describe, time_data

TIMES = DataTimes(decode=0.004, affine=0.002, masks=0.001, collate=0.002, other=0.001)


def data(**options):
    return build_datamodule(CocoDataConfig(root="x", batch_size=2, **options))


def test_clock_counts_inner_time_once():
    clock = Clock()
    with clock("outer"):
        time.sleep(0.02)
        with clock("inner"):
            time.sleep(0.05)
    assert 0.02 <= clock.seconds["outer"] < 0.045
    assert clock.seconds["inner"] >= 0.05


def test_model_that_waits_is_told_for_how_long_and_what_to_try():
    lines = describe(TIMES, rate=50.0, seconds=0.01, data=data(num_workers=2), device="cuda")
    assert lines[0].split(maxsplit=1)[1] == (
        "10.0 ms an image in one process: decode 4.0, affine 2.0, masks 1.0, collate 2.0, other 1.0"
    )
    assert lines[1].split(maxsplit=1)[1] == "50.0 images/s with 2 workers"
    assert lines[2].split(maxsplit=1)[1] == "10.0 ms a step of 2 on cuda, 200.0 images/s"
    assert lines[3].split(maxsplit=1)[1] == (
        "the model waits for data 75% of the time; try data.num_workers=4, data.cache=ram or disk, data.mask_stride=4"
    )


def test_data_that_wait_and_no_workers_at_all():
    *_, last = describe(TIMES, rate=50.0, seconds=1.0, data=data(num_workers=1), device="cpu")
    assert last.endswith("data wait for the model: they come 25.0 times as fast as it trains")
    *_, last = describe(TIMES, rate=50.0, seconds=0.04, data=data(num_workers=0, cache="ram", mask_stride=4), device="")
    assert last.endswith("without workers 50% of the time goes to data; try data.num_workers=1")


def test_times_are_of_the_runs_own_images_and_add_up(tmp_path: Path):
    config = ShapesDataConfig(root=str(tmp_path), num_train=8, num_val=1, batch_size=2, image_size=64, cache="none")
    shapes = build_datamodule(config)
    shapes.prepare_data()
    _ = shapes.train_split
    began = time.perf_counter()
    times = time_data(shapes, 8)
    assert all(value > 0 for value in times)
    assert 8 * times.total <= time.perf_counter() - began


def test_number_of_images_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["profile", "images=many"]) != 0
    assert capsys.readouterr().err.splitlines() == ["error: images=many: expected a number of images, at least 1"]
