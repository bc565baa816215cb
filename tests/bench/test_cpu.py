"""The case `cpu` compares like with like, in turns."""

import time

import numpy as np
import pytest

from bench import cpu_products
from bench.cpu_models import plain
from bench.interleaved import Runner, Timing, interleaved, ratio
from nanochat.shapes import num_parameters


def test_competitors_take_turns() -> None:
    order: list[str] = []
    runners = {
        name: Runner(run=lambda name=name: order.append(name), rest=lambda: order.append("-"))  # type: ignore[misc]
        for name in ("a", "b")
    }

    interleaved(runners, turns=2, seconds=0.0)

    assert "".join(order) == 2 * ("aaaaa-" + "bbbbb-")


def test_a_disturbed_turn_does_not_change_the_ratio() -> None:
    ours = Timing(turns=(1.0, 9.0, 1.0))
    peer = Timing(turns=(2.0, 18.0, 2.0))

    assert ratio(ours, peer) == 2.0


def test_a_call_is_timed_without_its_start_and_rest() -> None:
    slow = Runner(run=lambda: None, start=lambda: time.sleep(0.05), rest=lambda: time.sleep(0.05))

    timing = interleaved({"slow": slow}, turns=2, seconds=0.0)["slow"]

    assert timing.seconds < 0.01


@pytest.mark.parametrize(("name", "size"), [("nano-125m", 125e6), ("2.3b", 2.3e9)])
def test_plain_models_have_one_stream_and_the_size_of_their_name(name: str, size: float) -> None:
    config = plain(name)

    assert config.num_streams == 1
    assert num_parameters(config) == pytest.approx(size, rel=0.05)


def test_products_are_compared_with_every_peer_that_can_run() -> None:
    results = list(cpu_products.products([256], [1, 3], [1], turns=1))

    names = {result.peer_name for result in results}
    assert {"onnxruntime 2-bit", "torch bfloat16"} <= names
    assert all(np.isfinite(result.ours) and result.ours > 0 for result in results)
    assert {result.target for result in results if result.peer_name != "onnxruntime 2-bit"} == {
        None
    }
