"""Every test starts from the same random numbers, and takes one core: several tests, and their processes, share two."""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and for the processes that tests start

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
