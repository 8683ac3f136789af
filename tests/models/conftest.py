"""What tests of several networks share."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode


class Counted(TorchDispatchMode):
    """Counts the operators that are dispatched, views included."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counting():
    """`with counting() as counted:` counts operators in `counted.count`."""
    return Counted
