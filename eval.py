"""`python eval.py ...` is `vision-stack eval ...`; see vision_stack/commands/eval.py."""

import sys

from vision_stack.commands.eval import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
