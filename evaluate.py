"""Evaluate as the paper's repository does: `python evaluate.py --cfg-path recipe.yaml --options run.seed=1`.

The same as `lavis evaluate recipe.yaml --options run.seed=1`.
"""

import sys

from lavis.cli.runs import script

if __name__ == "__main__":
    sys.exit(script("evaluate"))
