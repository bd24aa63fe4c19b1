"""Show augmentation: `vision-stack show [DIR] [augment=strong] [out=FILE] [rows=4]` writes one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vision_stack.commands.errors import OneLineErrors
from vision_stack.commands.like_train import compose_like_train, take_own

HELP = """\
Show what a model will be fed: training images before and after augmentation, in one picture.

  vision-stack show                            generated scenes
  vision-stack show DIR augment=strong         a data set, with a preset
  vision-stack show data=coco data.root=DIR augment.mosaic=1 out=mosaic.png

Options:
  out=augmentation.jpg  the picture, .jpg or .png
  rows=4                how many images, 1 to 20
All others are those of `vision-stack train`: the data, task, seed, head (whether it learns from masks), augment=NAME
and its single values. The picture shows what a run with the same options and seed feeds its model in epochs 0 to 2."""
MOST_ROWS = 20


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 2 after one line that says what is wrong."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return 0
    errors = OneLineErrors()
    with errors:
        own = {"out": "augmentation.jpg", "rows": "4"}
        words = take_own(argv, own)
        if not own["rows"].isdecimal() or not 1 <= int(own["rows"]) <= MOST_ROWS:
            raise ValueError(f"rows={own['rows']}: expected a number of images, 1 to {MOST_ROWS}")
        config, overrides = compose_like_train(words)
        from vision_stack.training.preview import show

        print("\n".join(show(config, Path(own["out"]).expanduser(), int(own["rows"]), overrides)))
    return errors.exit_code
