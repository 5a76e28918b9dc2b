"""Eight simulated CPU devices, few threads, and the folder of real videos where there is one."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside the tests
from xla_flags import on_devices

# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{on_devices(8)} {os.environ.get('XLA_FLAGS', '')}".strip()
# Programs for TPU compile in a third of the time, and keep more temporaries.
os.environ.setdefault("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")  # torch, where parity tests import it


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real videos, annotations and the Qwen tokenizer named by JVLMM_TEST_DATA."""
    folder = os.environ.get("JVLMM_TEST_DATA")
    if not folder:
        pytest.skip("JVLMM_TEST_DATA is unset: it names the folder of real videos and annotations")
    if not Path(folder).is_dir():
        pytest.fail(f"JVLMM_TEST_DATA={folder} is no folder")
    return Path(folder).resolve()
