"""`python train.py ...` is `vision-stack train ...`; see vision_stack/commands/train.py."""

import sys

from vision_stack.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
