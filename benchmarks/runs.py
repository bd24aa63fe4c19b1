"""Runs of train.py, each a process of its own, for benchmarks that compare what training gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EVERY_RUN = (
    "trainer.max_epochs=-1",
    "trainer.check_val_every_n_epoch=100000",  # the last step is always validated
    "logger=none",
    "num_pictures=0",
)


def train(run_dir: Path, steps: int, *options: str) -> dict[str, Any]:
    """One run of train.py; the metrics of its last step."""
    run("train.py", f"run_dir={run_dir.resolve()}", f"trainer.max_steps={steps}", *EVERY_RUN, *options)
    return json.loads((run_dir / "metrics.json").read_text())


def run(*arguments: str | Path) -> None:
    """Python with these arguments, in the folder of train.py; SystemExit with all it printed where it fails."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")
