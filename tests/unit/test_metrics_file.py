"""metrics.csv of a run that was stopped, in whatever state it was left."""

import csv
from pathlib import Path

import pytest

from vision_stack.training.loggers import MetricsFile


def log(logger: MetricsFile, steps: range) -> None:
    """A row of losses a step, a validation every second."""
    for step in steps:
        logger.log_metrics({"train/loss": 0.1 * step, "epoch": step // 2}, step)
        if step % 2:
            logger.log_metrics({"val/AP": 0.5, "epoch": step // 2}, step)


def uninterrupted(folder: Path) -> bytes:
    log(MetricsFile(folder), range(8))
    return (folder / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 4096,
        b"5,2,0.",
        b"5,2\r\n",
        b"five,2,0.5,\r\n",
        b"\xff\xfe\x80\r\n\x93NUMPY\n,,,,,,\n",
        b'5,2,"0.5,\r\n',
        b"\0\0\0\r\n6,3,0.6,\r\n",
    ],
)
@pytest.mark.parametrize("logged", [range(0), range(1), range(5), range(6)])
def test_resumed_file_equals_the_uninterrupted_one_whatever_a_power_cut_left(
    garbage: bytes, logged: range, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = uninterrupted(tmp_path / "a")
    log(MetricsFile(tmp_path), logged)
    path = tmp_path / "metrics.csv"
    with path.open("ab") as file:
        file.write(garbage)
    step = min(4, len(logged))  # of the checkpoint
    logger = MetricsFile(tmp_path)
    logger.resume(step, validated=True)
    log(logger, range(step, 8))
    assert path.read_bytes() == expected
    assert ("are not rows of metrics" in capsys.readouterr().out) == bool(garbage)


def test_validation_that_is_repeated_stands_there_once(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "a")
    log(MetricsFile(tmp_path), range(4))  # the validation after step 4 was logged, but not what came of it saved
    logger = MetricsFile(tmp_path)
    logger.resume(4, validated=False)
    logger.log_metrics({"val/AP": 0.5, "epoch": 1}, 3)
    log(logger, range(4, 8))
    assert (tmp_path / "metrics.csv").read_bytes() == expected


def test_new_run_keeps_nothing_of_another(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "a")
    (tmp_path / "metrics.csv").write_text("animal,count\ncat,2\n")
    assert uninterrupted(tmp_path) == expected


def test_columns_that_come_later_are_added_to_earlier_rows(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_metrics({"b": 2.0}, 1)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["step", "epoch", "a", "b"], ["0", "", "1.0", ""], ["1", "", "", "2.0"]]
