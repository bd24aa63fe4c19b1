"""Write a model as a directory for transformers: `vision-stack to-transformers SOURCE DIRECTORY`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vision_stack.commands.errors import OneLineErrors


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="vision-stack to-transformers", description="Write a model for transformers.")
    parser.add_argument("source", help="a training checkpoint, a directory that save_pretrained wrote, or a Hub id")
    parser.add_argument("directory", type=Path, help="where config.json and the weights go")
    options = parser.parse_args(argv)
    errors = OneLineErrors()
    with errors:
        from vision_stack.model import VisionModel

        VisionModel.from_pretrained(options.source).export_transformers(options.directory)
        print(f"wrote {options.directory}; transformers' from_pretrained({str(options.directory)!r}) loads it")
    return errors.exit_code
