"""Recipes run by the command line in processes of their own, some of them killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from xla_flags import FAST_COMPILATION, on_devices

import jvlmm
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.models.huggingface import load_config, save_checkpoint
from jvlmm.models.qwen2_5_vl import init_params

ASSET = Path(jvlmm.__file__).parent / "assets/tiny"


def start(config: Path, workdir: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "XLA_FLAGS": FAST_COMPILATION,
        "PYTHONPATH": str(Path(jvlmm.__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled"),
    }
    program = "import sys; from jvlmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "run", str(config), "--workdir", str(workdir), "--json", "--debug"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def kill_after(process: subprocess.Popen, steps: int, logged: Callable[[], int]) -> None:
    """SIGKILL as soon as `logged()` is as many steps."""
    deadline = time.monotonic() + 300
    while logged() < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(program, variables, *arguments):
    """Two processes with four devices each."""
    environment = {
        **os.environ,
        "XLA_FLAGS": on_devices(4),
        "PYTHONPATH": str(Path(jvlmm.__file__).parents[1]),
        "JVLMM_COORDINATOR": f"127.0.0.1:{free_port()}",
        "JVLMM_NUM_PROCESSES": "2",
        **variables,
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={**environment, "JVLMM_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def write_model(folder: Path) -> None:
    """A checkpoint of one layer and one block, with random weights."""
    tokenizer, tiny = ChatTokenizer.from_pretrained(ASSET), load_config(ASSET)
    small = replace(
        tiny,
        text=replace(tiny.text, num_layers=1, vocab_size=624),
        vision=replace(tiny.vision, depth=1, fullatt_block_indexes=(0,)),
        tokens=tokenizer.special_tokens,
        scan_layers=False,
    )
    save_checkpoint(folder, init_params(small, jax.random.key(0)), small, "float32", source_dir=ASSET)


def write_rows(folder: Path) -> None:
    """Images of two sizes and questions of many lengths; one image cannot be read."""
    rng, rows = np.random.default_rng(0), []
    for number in range(20):
        size = (56, 28 + 28 * (number % 2))
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
        rows.append(
            {
                "id": f"r{number}",
                "question": "Which shape is red?" + " And which is blue?" * (number % 4),
                "answer": str(number % 7),
                "answer_type": "number",
                "media": [{"type": "image", "path": f"{number}.png"}] if number % 5 else [],
                "response": str(number % 7),
            }
        )
    (folder / "7.png").write_bytes(b"no image")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
