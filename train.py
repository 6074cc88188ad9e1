"""Train as the paper's repository does: `python train.py --cfg-path recipe.yaml --options run.max_epoch=5`.

The same as `lavis train recipe.yaml --options run.max_epoch=5`.
"""

import sys

from lavis.cli.runs import script

if __name__ == "__main__":
    sys.exit(script("train"))
