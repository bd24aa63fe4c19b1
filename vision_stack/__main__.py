"""`python -m vision_stack VERB ...` is the command `vision-stack VERB ...`."""

import sys

from vision_stack.commands import main

if __name__ == "__main__":
    sys.exit(main())
