"""Backbone families against transformers' own with the same perturbed weights: a table of differences.

    python benchmarks/backbone_parity.py [FAMILY ...]

Columns: largest difference of a stage's maps over the spread (standard deviation) of transformers' map, in fp32. The
models are tiny; `tests/parity/test_family_parity.py` holds the same figures to 1e-4 and shows that planted faults
exceed it a hundredfold.
"""

import sys
from pathlib import Path

import torch
import transformers

sys.path.append(str(Path(__file__).parents[1] / "tests/parity"))
from family_parity import CASES, differences, pair


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"no family {', '.join(unknown)}; choose among: {', '.join(CASES)}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; max |difference| / spread\n")
    print("| family | size | " + " | ".join(("stem", *(f"stage{i}" for i in range(1, 5)))) + " |")
    print("|---" * 7 + "|")
    worst = 0.0
    for name in names or CASES:
        theirs, ours = pair(name)
        for size in CASES[name].sizes:
            found = list(differences(name, theirs, ours, size).values())
            cells = [f"{x:.1e}" for x in found] + [""] * (5 - len(found))
            print(f"| {name} | {size[0]}x{size[1]} | " + " | ".join(cells) + " |", flush=True)
            worst = max(worst, *found)
    print(f"\nworst: {worst:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
