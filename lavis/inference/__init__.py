"""What one does with a loaded model: encode, match, classify, explain, index and search, talk, convert.

Nothing here prints; the command line, the web demo and notebooks call it.
"""

from lavis.inference.encoder import Encoder
from lavis.inference.explain import Explanation, explain, overlay
from lavis.inference.index import Hit, Index, Update
from lavis.inference.loading import Loaded, load, sees, split_model
from lavis.inference.ranking import RankedLabels
from lavis.inference.trained import TrainedClasses, has_classes
from lavis.inference.zero_shot import ZeroShot, classify

__all__ = [
    "Encoder",
    "Explanation",
    "Hit",
    "Index",
    "Loaded",
    "RankedLabels",
    "TrainedClasses",
    "Update",
    "ZeroShot",
    "classify",
    "explain",
    "has_classes",
    "load",
    "overlay",
    "sees",
    "split_model",
]  # fmt: skip
