"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest

# Programs in the background may block the signals, and so would all that the tests start and interrupt.
if os.name == "posix":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def _interruptible() -> None:
    """Ctrl-C acts as always: ignored in the background by some shells, and kept by StarDist's official program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout, which is too large and too mixed in licence to ship."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets (../shared/data) are not beside this checkout")
    return folder
