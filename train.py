"""`python train.py ...` is `vision-stack train ...`; see vision_stack/commands/train.py."""

import sys

from vision_stack.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
