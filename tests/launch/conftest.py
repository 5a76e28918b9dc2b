"""Makes `launchers` importable, and hands each test its own stand-ins for gcloud, kubectl, xpk and SLURM."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def programs(tmp_path):
    from launchers import Programs

    return Programs(tmp_path)
