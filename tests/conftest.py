"""Settings all tests share: quiet, offline, few threads, the same on every machine."""

import gc
import os

import pytest

from counterpoint import masking

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch):
    monkeypatch.setattr(masking, "_known", {})
    monkeypatch.setattr(masking, "_pattern", None)


LONG = [
    *("training/test_trainer_ranks.py", "training/test_run_ranks.py", "exactness/test_exactness.py"),
    *("cli/test_examples.py", "study/test_command.py", "report/test_controls.py", "report/test_escaping.py"),
    *("test_secrets.py", "training/", "recovery/", "exactness/", "rewards/", "diagnosis/", "pocket/"),
]
"""What takes longest, first: begun last, it would leave all other cores without work."""


def pytest_collection_modifyitems(items):
    """Files stay together, and in them all tests in their order."""

    def place(item):
        name = item.nodeid.removeprefix("tests/")
        return next((i for i, start in enumerate(LONG) if name.startswith(start)), len(LONG))

    items.sort(key=place)


def pytest_collection_finish():
    """Every end of a training collects garbage, for which all that torch and TRL brought would be looked through."""
    gc.collect()
    gc.freeze()
