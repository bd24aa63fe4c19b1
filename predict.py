"""`python predict.py ...` is `vision-stack predict ...`; see vision_stack/commands/predict.py."""

import sys

from vision_stack.commands import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
