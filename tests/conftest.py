"""What every test shares: one thread, no display, the two image sets, the markers."""
import os

# Set before NumPy or torch is imported: one thread makes sums, and so results, the same on every machine size.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MPLBACKEND="Agg")

import sys

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about twenty seconds; leave out with -m 'not slow'")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def one_thread_and_no_open_figures():
    """Bring torch back to one thread and close figures, whatever the test before did."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def breastmnist():
    """The real BreastMNIST, 780 images of 28 x 28 pixels; never downloaded by a test."""
    from bc_clust.data import DataUnavailableError, load

    try:
        return load("breastmnist", download=False)
    except DataUnavailableError as error:
        reason = str(error).splitlines()[0]
    pytest.skip(f"the real BreastMNIST is not at hand (`bc_clust data get breastmnist` fetches it): {reason}")


@pytest.fixture(scope="session")
def phantom_small():
    """Sixty simulated ultrasound images of 28 x 28 pixels; the same ones every time."""
    from bc_clust.data import phantom

    return phantom(n=60, size=28, random_state=0)
