"""Names of the files in a run's folder that commands look for, and which runs are complete.

Imports nothing heavy: `resume=auto` looks through many folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from vision_stack.ops.files import write_file

CONFIG_FILE = "config.yaml"
BEST_CHECKPOINT, LAST_CHECKPOINT = Path("checkpoints") / "best.ckpt", Path("checkpoints") / "last.ckpt"
FINISHED_FILE = "finished.json"  # there once a run has trained as long as it was asked to


class Finished(NamedTuple):
    """How long a complete run has trained."""

    epochs: int
    steps: int

    def __str__(self) -> str:
        return f"{self.epochs:,} epochs, {self.steps:,} steps"


def mark_finished(run_dir: Path, epochs: int, steps: int) -> None:
    """To be called at a run's very end, after its results have been written."""
    content = json.dumps(Finished(epochs, steps)._asdict())
    write_file(run_dir / FINISHED_FILE, f"{content}\n".encode())


def mark_unfinished(run_dir: Path) -> None:
    """To be called before a run trains, perhaps longer than it once did."""
    (run_dir / FINISHED_FILE).unlink(missing_ok=True)


def read_finished(run_dir: Path) -> Finished | None:
    """None for a run that was interrupted, or that is still going."""
    file = run_dir / FINISHED_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Finished(int(content["epochs"]), int(content["steps"]))
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return Finished(0, 0)  # not as we write it; that it is there says enough
