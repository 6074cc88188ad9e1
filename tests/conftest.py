"""Set before torch is imported: tiny models are fastest on one thread, and test processes may share cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

settings.register_profile("lavis", deadline=None)  # how long an example takes says nothing on shared cores
settings.load_profile("lavis")


@pytest.fixture(scope="module")
def all_cores():
    """Full-size models compute on all cores."""
    import torch  # after the environment is set

    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)
