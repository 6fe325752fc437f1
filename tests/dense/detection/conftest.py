"""The scope of the tests of detectors."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _scope():
    """mmdet's, as the configs of detectors have it, whatever a Runner before left."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield
