"""What the tests of all operators share: where they run, and memory that is never accidentally zero.

On a machine with a GPU the Triton kernels run there for real; elsewhere they run in Triton's interpreter.
"""

import pytest
import torch

# PyTorch collects what `torch.device(...)` as a context applies to when it is first used: before `_poison` replaces any
with torch.device("cpu"):
    torch.empty(0)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["reference", "auto", "triton"])
def path(request, monkeypatch):
    """The three implementations: the PyTorch reference, what the device gets by default, and Triton."""
    monkeypatch.setenv("ATTLAS_KERNELS", request.param)
    return request.param


@pytest.fixture
def triton_path(monkeypatch):
    monkeypatch.setenv("ATTLAS_KERNELS", "triton")


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Uninitialized memory holds NaN, or a number no index can be: what a kernel forgets to write shows."""

    def poisoned(allocate):
        def empty(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            # fake and meta tensors have no memory
            if type(tensor) is torch.Tensor and tensor.device.type in ("cpu", "cuda"):
                if tensor.is_floating_point():
                    tensor.detach().fill_(torch.nan)
                elif tensor.dtype in (torch.int32, torch.int64):
                    tensor.fill_(-(1 << 30))
            return tensor

        return empty

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
