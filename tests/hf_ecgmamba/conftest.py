"""The real recordings."""

import pytest


@pytest.fixture(scope="session")
def ecg(shared_data):
    return shared_data / "ecg"
