"""Fixtures: device, dtype, backend. PYSAMP_REQUIRE=cuda makes a missing device an error, not a skip."""

import os

import pytest
import torch

from pysamp import _native


def pytest_collection_modifyitems(config, items):
    """`gpu` needs a device; `slow` runs only when the marker expression asks for it."""
    has_device = torch.cuda.is_available() or os.environ.get("PYSAMP_REQUIRE") == "cuda"
    wants_slow = "slow" in (config.getoption("-m") or "")
    for item in items:
        if "gpu" in item.keywords and not has_device:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "slow" in item.keywords and not wants_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with `pytest -m slow`"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def native(device):
    """The compiled module for `device`; where none was built there is nothing to test."""
    module = _native.module_for(device)
    if module is None:
        pytest.skip(f"no native module for {device.type}: {_native.info()['cpu_reason']}")
    return module
