"""Weights are in memory once: as little as two bits each, and never twice while a model is loaded."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nanochat
from nanochat.backends.numba.runtime.memory import WeightMemory, spread_over_nodes
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.export.directory import save_model
from nanochat.tensors import release
from nanochat.weights import Ternary, named_leaves
from tests.parity.random_models import random_packed_weights

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory is used")

LOAD = """
import gc, re, sys
from pathlib import Path
import nanochat
from nanochat.export.formats import load
from nanochat.backends import get

def kilobytes(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

# What any model takes: frameworks, and compiled kernels.
nanochat.from_pretrained("nanochat-tiny", backend="numba").generate("fn", max_tokens=2)
ops = get("numba")
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
parts = load(Path(sys.argv[1]))
config, weights = parts.config, parts.weights
prepared = ops.prepare(weights)
print(kilobytes("VmHWM") - before, kilobytes("VmRSS") - before)
"""


@linux
def test_loading_takes_at_most_a_third_more_than_the_loaded_model(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=4096,
        width=1024,
        num_layers=16,
        num_heads=8,
        num_kv_heads=4,
        ffn_width=4096,
        num_streams=1,
        context_length=512,
    )
    weights = random_packed_weights(config, seed=0)
    tokenizer = nanochat.from_pretrained("nanochat-tiny", backend="reference").tokenizer
    source = Bundle(
        name="random", config=config, weights=weights, tokenizer=tokenizer, generation={}
    )
    save_model(tmp_path / "model", source)
    numbers = sum(
        leaf.packed.shape[0] * leaf.columns
        for _, leaf in named_leaves(weights)
        if isinstance(leaf, Ternary)
    )

    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )

    peak, resident = (1024 * int(word) for word in done.stdout.split())
    assert peak <= 1.3 * resident
    # The embedding takes a byte each.
    assert resident <= numbers * 2.2 / 8 + 1.1 * config.vocab_size * config.width


def test_arrays_share_large_pieces_and_begin_on_lines_of_the_cache() -> None:
    memory = WeightMemory()

    arrays = [memory.empty((rows, 7), np.uint8) for rows in (1, 1000, 3)]

    addresses = [array.ctypes.data for array in arrays]
    assert [address % 64 for address in addresses] == [0, 0, 0]
    assert max(addresses) - min(addresses) < 2**20
    assert not any(array.any() for array in arrays)


def test_a_matrix_larger_than_a_piece_has_one_of_its_own() -> None:
    array = WeightMemory().empty((5, 2**23), np.uint8)

    array[:] = 1

    assert array.sum(dtype=np.int64) == 5 * 2**23


def test_memory_that_is_given_back_is_read_again_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(256)) * 4096)
    mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))[100:]

    release(mapped)

    np.testing.assert_array_equal(mapped[:156], np.arange(100, 256))


def test_what_was_written_to_a_private_copy_is_not_given_back(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(2**20))
    mapped = np.asarray(np.memmap(path, np.uint8, mode="c"))
    mapped[:] = 3

    release(mapped)

    assert (mapped == 3).all()


def test_one_node_needs_no_policy(tmp_path: Path) -> None:
    online = tmp_path / "online"
    online.write_text("0\n")

    with spread_over_nodes(online) as nodes:
        assert nodes == 1


@linux
def test_pages_go_to_all_nodes_and_later_ones_where_they_went_before(tmp_path: Path) -> None:
    online = tmp_path / "online"
    # A node that is not there is an error to the system, and then nothing changes.
    online.write_text("0,63\n")

    with spread_over_nodes(online) as nodes:
        values = np.ones(2**20)

    assert nodes in (1, 2)
    assert values.sum() == 2**20


@pytest.mark.skipif(
    not Path("/proc/self/numa_maps").exists(), reason="the system does not say where pages go"
)
def test_pages_that_another_thread_fills_go_to_all_nodes(tmp_path: Path) -> None:
    online = tmp_path / "online"
    online.write_text("0,63\n")

    array = WeightMemory(online=online).empty((2**20,), np.uint8)

    start = array.ctypes.data
    policies = [line.split()[:2] for line in Path("/proc/self/numa_maps").read_text().splitlines()]
    (policy,) = (name for begin, name in policies if int(begin, 16) == start // 4096 * 4096)
    assert policy.startswith("interleave")
