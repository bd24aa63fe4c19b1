"""Runs train.py on many data sets: `python broken_commands.py DIR ...`, a json line for each.

Each runs in a fork of this process, so that torch and Lightning are imported once. A line holds the exit status, what
was printed to standard error, and the files below the data set's parent folder that were opened.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import vision_stack.training.run  # noqa: F401  the imports that take seconds

ROOT = Path(__file__).parents[2]


def train(data_root: Path) -> None:
    """As `python train.py` would, in this process; ends it."""
    sys.argv = ["train.py", "data=coco", f"data.root={data_root}", f"run_dir={data_root.parent / 'run'}"]
    sys.argv += ["trainer.max_steps=1", "trainer.accelerator=cpu"]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        status: Any = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:  # what an interpreter would do
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(bool(status)))


def run(data_root: Path) -> dict[str, Any]:
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as opened:
        if not (child := os.fork()):
            os.dup2(errors.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            watch(data_root.parent, opened.fileno())
            train(data_root)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        opened.seek(0)
        return {"status": status, "errors": errors.read().decode(), "opened": opened.read().decode().splitlines()}


def watch(folder: Path, log: int) -> None:
    """Writes to `log` the true path of whatever is opened below `folder`, and of /etc/passwd."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(f"{folder}{os.sep}") or path == "/etc/passwd":
                os.write(log, f"{path}\n".encode(errors="replace"))

    sys.addaudithook(audit)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(run(Path(argument))), flush=True)
