"""`python predict.py ...` is `vision-stack predict ...`; see vision_stack/commands/predict.py."""

import sys

from vision_stack.commands.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
