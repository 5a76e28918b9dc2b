"""Seconds without tracing and compiling, also where one is made while another is."""

import time

import jax
import jax.numpy as jnp
import pytest

from jvlmm.rollout import stopwatch
from jvlmm.rollout.stopwatch import seconds_of_work


def test_programs_that_are_made_do_not_count():
    @jax.jit
    def slow_to_trace(x):
        time.sleep(0.3)
        return jax.jit(lambda y: [time.sleep(0.2), jnp.sin(y)][1])(x)

    begun = time.perf_counter()
    slow_to_trace(jnp.ones(3)).block_until_ready()
    time.sleep(0.1)
    assert time.perf_counter() - begun > 0.6
    assert 0.1 <= seconds_of_work(begun) < 0.3


def test_nested_and_earlier_intervals(monkeypatch):
    """An inner program is told of before the outer one that made it."""
    clock = iter([10.0, 12.0, 13.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    making = stopwatch._Making()
    making.add(1.0)  # 9 to 10
    making.add(1.5)  # 10.5 to 12, within
    making.add(3.0)  # 10 to 13
    assert making.seconds_since(0.0) == pytest.approx(4.0)
    assert making.seconds_since(9.5) == pytest.approx(3.5)
    assert making.seconds_since(12.0) == pytest.approx(1.0)
    assert making.seconds_since(14.0) == 0
