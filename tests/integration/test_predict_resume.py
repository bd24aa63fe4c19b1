"""predict.py stopped and started again: nothing is lost, nothing is done twice, memory holds one image."""

import json
import os
import shutil
import signal
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

from vision_stack.backbones import TimmBackboneConfig
from vision_stack.commands import predict as command
from vision_stack.heads import MaskFormerHeadConfig
from vision_stack.model import InputSize, VisionModel, VisionModelConfig
from vision_stack.necks import FPNConfig
from vision_stack.structures import Category
from vision_stack.training import prediction
from vision_stack.training.interrupts import Stopped
from vision_stack.training.prediction import JOURNAL_FILE, predict
from vision_stack.training.sources import find_images
from vision_stack.training.tasks import Written

NAMES = ("a.png", "b.png", "c.png", "more/a.png")


def save_model(folder: Path, seed: int = 0, **options: Any) -> Path:
    torch.manual_seed(seed)
    config = VisionModelConfig(
        backbone=TimmBackboneConfig("test_resnet", out_strides=[4, 8, 16]),
        neck=FPNConfig(channels=16),
        head=MaskFormerHeadConfig(num_queries=5, hidden_dim=16, num_heads=2, ffn_dim=16, num_decoder_layers=1),
        categories=(Category(id=3, name="a"), Category(id=8, name="b", is_thing=False)),
        input_size=InputSize(short_edge=48, long_edge=64),
        **options,
    )
    VisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        write_photo(tmp_path / "photos" / name, rng)
    return tmp_path / "photos"


def write_photo(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)


def run(model: Path, photos: Path, run_dir: Path, **options: Any) -> Any:
    config = tiny_run.compose_options("predict", ["checkpoint=x", "source=x", "run_dir=x"])
    predict({**config, "checkpoint": str(model), "source": str(photos), "device": "cpu", **options}, run_dir)
    return json.loads((run_dir / "predictions.json").read_text())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the images that the model is given."""
    numbers: list[int] = []
    find = prediction.find

    def watched(model: VisionModel, image: np.ndarray, number: int, *rest: Any) -> Any:
        numbers.append(number)
        return find(model, image, number, *rest)

    monkeypatch.setattr(prediction, "find", watched)
    return numbers


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> None:
    """Stop as if in the midst of an image."""
    jpeg = prediction.jpeg
    seen = iter(range(1, 100))
    monkeypatch.setattr(prediction, "jpeg", lambda picture: act() if next(seen) == number else jpeg(picture))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.suffix in (".jpg", ".png")}


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_stopped_run_goes_on_and_ends_as_one_that_was_not_stopped(
    task: str, photos: Path, tmp_path: Path, seen: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model", task=task)
    expected = run(model, photos, tmp_path / "whole")
    out = tmp_path / "out"

    def stop() -> bytes:
        raise Stopped(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3, stop)
        with pytest.raises(Stopped, match=f"SIGINT; 2 of 4 images are done; continue with .* run_dir={out}$"):
            run(model, photos, out)
    assert not (out / "predictions.json").exists()
    assert len((out / JOURNAL_FILE).read_text().splitlines()) == 1 + 2
    assert {name for name in files(out) if name.startswith("pictures")} == {"pictures/a.jpg", "pictures/b.jpg"}
    seen.clear()
    capsys.readouterr()
    assert run(model, photos, out) == expected
    assert seen == [3, 4]
    assert "2 of 4 images were done before and are taken over" in capsys.readouterr().out
    assert files(out) == files(tmp_path / "whole")
    seen.clear()
    assert run(model, photos, out) == expected
    assert seen == []


def test_what_changed_since_is_done_again_and_nothing_else(
    model: Path, photos: Path, tmp_path: Path, seen: list[int]
) -> None:
    run(model, photos, tmp_path / "out")
    seen.clear()
    rng = np.random.default_rng(1)
    write_photo(photos / "b.png", rng)  # another image of the same name
    os.utime(photos / "b.png", ns=(1, 1))
    write_photo(photos / "0.png", rng)  # a new one, which moves the numbers of all others
    (photos / "c.png").unlink()
    (tmp_path / "out" / "pictures" / "more" / "a.jpg").write_bytes(b"")  # as a power cut leaves it
    found = run(model, photos, tmp_path / "out")
    assert seen == [1, 3, 4]
    shutil.rmtree(tmp_path / "out")
    assert found == run(model, photos, tmp_path / "out")


@pytest.mark.parametrize("left", range(0, 40, 3))
def test_journal_cut_off_or_spoilt_anywhere_costs_at_most_what_is_behind_it(
    left: int, model: Path, photos: Path, tmp_path: Path, seen: list[int]
) -> None:
    expected = run(model, photos, tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL_FILE
    lines = journal.read_bytes().splitlines(keepends=True)
    half = lines[2][: left * len(lines[2]) // 40]
    journal.write_bytes(lines[0] + lines[1] + half + (b"\0" * 50 + b"\n" if left % 2 else b""))
    seen.clear()
    assert run(model, photos, tmp_path / "out") == expected
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("begun", [b"", b'{"format_ver', b"\0\0\0"])
def test_journal_that_was_hardly_begun_is_begun_again(begun: bytes, model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL_FILE).write_bytes(begun)
    assert run(model, photos, tmp_path / "out") == run(model, photos, tmp_path / "other")


def test_results_of_other_options_are_not_mixed(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = run(model, photos, out)
    for wanted, options in (
        ("another threshold (None, now 0.3)", {"threshold": 0.3}),
        ("another top_k (100, now 7)", {"top_k": 7}),
        ("another source", {"source": str(photos / "a.png")}),
        ("another checkpoint", {"checkpoint": str(save_model(tmp_path / "model", seed=1))}),
    ):
        with pytest.raises(ValueError, match="give another run_dir, or delete") as error:
            run(model, photos, out, **options)
        assert wanted in str(error.value)
    copied = shutil.copytree(model, tmp_path / "the same")
    assert run(copied, photos, out) == expected
    (out / JOURNAL_FILE).write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"predictions\.jsonl is not a file of predict; give another run_dir"):
        run(model, photos, out)


def test_image_that_does_not_fit_in_memory_loses_no_other(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large() -> bytes:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stop_at(monkeypatch, 2, too_large)
    found = run(model, photos, tmp_path / "out")
    assert {record["file_name"] for record in found} == {"a.png", "c.png", "more/a.png"}
    out = capsys.readouterr().out
    assert "b.png: pixels: its 60 x 40 pixels do not fit in memory; make it smaller, or try device=cpu" in out
    assert "3 images, 1 image skipped" in out


def test_memory_does_not_grow_with_the_images(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of records for each of forty images."""
    for number in range(36):
        shutil.copy(photos / "a.png", photos / f"{number}.png")

    def find(_: Any, image: np.ndarray, number: int, *rest: Any) -> tuple[Written, Image.Image]:
        record = {"image_id": number, "category_id": 3, "score": 0.0, "segmentation": "x" * 10**6}
        return Written([record]), Image.new("RGB", (60, 40))

    monkeypatch.setattr(prediction, "find", find)
    tracemalloc.start()
    try:
        run_quietly = {"checkpoint": str(model), "source": str(photos), "device": "cpu"}
        config = tiny_run.compose_options("predict", ["checkpoint=x", "source=x", "run_dir=x"])
        predict({**config, **run_quietly}, tmp_path / "out")
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out" / "predictions.json").stat().st_size > 40 * 10**6
    assert used < 12 * 10**6


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_command_with_one_line_and_the_shells_exit_code(
    signum: signal.Signals,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["vision-stack"])
    stop_at(monkeypatch, 2, lambda: os.kill(os.getpid(), signum) or b"")
    before = signal.getsignal(signum)
    argv = [f"checkpoint={model}", f"source={photos}", f"run_dir={tmp_path / 'out'}", "device=cpu"]
    assert command.main(argv) == 128 + signum
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        f"stopped by {signum.name}; 1 of 4 images are done; continue with the same options and run_dir="
    )
    assert signal.getsignal(signum) == before
    assert command.main(argv) == 0
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 4 * 10


def fill_the_disk(*_: Any) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def test_full_disk_is_one_line_with_the_file_and_what_was_done_is_kept(
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["vision-stack"])
    replace = os.replace
    argv = [f"checkpoint={model}", f"source={photos}", f"run_dir={tmp_path / 'out'}", "device=cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: fill_the_disk() if str(b).endswith("c.jpg") else replace(a, b))
        assert command.main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"No space left on device: '{tmp_path}/out/pictures/c.jpg'; make room, or give another run_dir" in line
    assert not [name for name in os.listdir(tmp_path / "out" / "pictures") if "scratch" in name]
    with monkeypatch.context() as patch:
        patch.setattr("hydra.core.utils._save_config", fill_the_disk)  # before anything of ours
        assert command.main(argv) == 2
    assert f"No space left on device: '{tmp_path}/out'; make room" in capsys.readouterr().err
    assert command.main(argv) == 0
    assert "2 of 4 images were done before" in capsys.readouterr().out


def refusing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As root, who may run the tests, every folder opens."""
    scandir, access = os.scandir, os.access

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path).rstrip("/").endswith(name):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: not path.rstrip("/").endswith(name) and access(path, mode))


@pytest.mark.parametrize("pattern", ["", "*/*.png", "**/*.png"])
def test_folder_that_cannot_be_listed_is_counted_and_named(
    pattern: str,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "closed").mkdir()
    refusing(monkeypatch, "closed")
    run(model, photos / pattern, tmp_path / "out")
    out = capsys.readouterr().out
    assert "photos/closed" in out
    assert "cannot be listed (Permission denied); change its permissions" in out
    assert f"{'1 image' if pattern == '*/*.png' else '4 images'}, 1 folder skipped" in out
    with pytest.raises(ValueError, match=r"no images .* in this folder.*closed: cannot be listed"):
        find_images(str(photos / "closed"))


def test_links_into_nowhere_and_pipes_are_skipped_by_name(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dead.png").symlink_to(photos / "nothing.png")
    os.mkfifo(photos / "pipe.png")
    run(model, photos, tmp_path / "out")
    out = capsys.readouterr().out
    assert "dead.png: pixels: there is no such file" in out
    assert "pipe.png: pixels: not a regular file" in out
    assert "4 images, 2 images skipped" in out


def test_file_name_that_is_no_text_is_predicted_and_printed(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "a.png", os.fsencode(photos) + b"/\xff.png")
    (photos / "\udcfe.png").write_bytes(b"no image")
    found = run(model, photos, tmp_path / "out")
    assert {"\udcff.png"} < {record["file_name"] for record in found}
    assert (tmp_path / "out" / "pictures" / "\udcff.jpg").is_file()
    assert "\\udcfe.png: pixels: not an image" in capsys.readouterr().out
