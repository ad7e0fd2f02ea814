import os

import pytest
import torch
from hypothesis import Phase, settings

# Properties are tried on the same examples in every run, few and small; HYPOTHESIS_PROFILE=search looks for new ones,
# and "quick" is content with the first example that fails, as a mutant is.
same = dict(derandomize=True, max_examples=8, deadline=None, database=None)
settings.register_profile("same", **same)
settings.register_profile("quick", phases=[Phase.generate], **same)
settings.register_profile("search", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
