"""`python eval.py ...` is `vision-stack eval ...`; see vision_stack/commands/eval.py."""

import sys

from vision_stack.commands import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
