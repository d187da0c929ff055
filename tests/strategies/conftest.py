"""What the tests of several strategies share."""

import pytest

from hardtrain.strategies import _checks


@pytest.fixture
def as_on_a_device(monkeypatch):
    """CPU tensors are treated as a GPU's: nobody looks at their contents."""
    monkeypatch.setattr(_checks, "on_host", lambda values: False)
