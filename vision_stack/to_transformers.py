"""A model of ours as a directory for transformers: `python -m vision_stack.to_transformers SOURCE DIRECTORY`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vision_stack import cli
from vision_stack.model import VisionModel


def main() -> int:
    """Exit code 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m vision_stack.to_transformers", description=__doc__)
    parser.add_argument("source", help="a training checkpoint, a directory that save_pretrained wrote, or a hub id")
    parser.add_argument("directory", type=Path, help="where config.json and the weights go")
    options = parser.parse_args()
    errors = cli.OneLineErrors()
    with errors:
        VisionModel.from_pretrained(options.source).export_transformers(options.directory)
        print(f"wrote {options.directory}; transformers' from_pretrained({str(options.directory)!r}) loads it")
    return errors.exit_code


if __name__ == "__main__":
    sys.exit(main())
