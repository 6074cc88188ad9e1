"""Set before torch is imported: tiny models are fastest on one thread, and test processes may share cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hypothesis import settings

settings.register_profile("lavis", deadline=None)  # how long an example takes says nothing on shared cores
settings.load_profile("lavis")
