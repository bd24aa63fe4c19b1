"""Files that are whole at any moment, and what is left of those that were not."""

import errno
import json
import os
from pathlib import Path

import pytest

from vision_stack.commands.run_folders import hold
from vision_stack.ops.files import replacing, scratch_beside, write_file
from vision_stack.training.results import write_files, write_predictions


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_replacing_takes_the_name_at_the_end_and_leaves_the_old_file_where_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.json"
    write_file(path, b"old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            file.flush()
            assert path.read_bytes() == b"old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"sub", "sub/a.json"}


def fill_the_disk(*_: object) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


@pytest.mark.parametrize("durable", [True, False])
def test_write_file_syncs_content_before_the_name_and_the_name_after_it(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("name") or replace(*paths))
    write_file(tmp_path / "a", b"x", durable=durable)
    assert calls == (["file", "name", "folder"] if durable else ["name"])


def test_write_file_names_of_255_bytes_and_the_umask_are_kept(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_file(tmp_path / ("n" * 255), b"x")
    finally:
        os.umask(old)
    assert (tmp_path / ("n" * 255)).stat().st_mode & 0o777 == 0o640


def test_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "a.json") as file:
            file.write(b"x")
            fill_the_disk()

    with pytest.raises(OSError, match="No space left") as error:
        write()
    assert error.value.filename == str(tmp_path / "a.json")
    assert names(tmp_path) == set()


def test_folder_of_files_on_a_full_disk_names_the_file_and_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "predictions"
    write_files(folder, {"1.png": b"old"})
    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space left") as error:
        write_files(folder, {"2.png": b"new"})
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(folder / "2.png")
    assert names(tmp_path) == {"predictions", "predictions/1.png"}


@pytest.mark.parametrize("records", [[], [{"a": 1}], [{"a": 1}, {"b": "\ud800"}]])
@pytest.mark.parametrize("header", [{}, {"categories": [{"id": 1}]}])
def test_predictions_written_record_by_record_are_those_of_json(
    records: list[dict[str, object]], header: dict[str, object], tmp_path: Path
) -> None:
    write_predictions(tmp_path, iter(records), header)
    expected = {"annotations": records, **header} if header else records
    assert (tmp_path / "predictions.json").read_text() == json.dumps(expected)


def test_hold_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    for folder in ("", "checkpoints", "pictures/a", "of the user"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "kept.tmp").touch()
        scratch_beside(tmp_path / folder / "last.ckpt").touch()
    scratch = scratch_beside(tmp_path / "predictions")
    scratch.mkdir()
    (scratch / "1.png").touch()
    before = names(tmp_path)
    hold(tmp_path)
    left = {name for name in names(tmp_path) if "scratch" in name}
    assert len([name for name in before if "scratch" in name]) == 6
    assert len(left) == 1
    assert left.pop().startswith("of the user/")  # which no run writes into
    assert {name for name in before if "scratch" not in name} <= names(tmp_path)
