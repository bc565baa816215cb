"""Files in the shapes of public models are models of these shapes, of which everything is measured."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.memory import Taken, process_peak
from bench.public import PEERS, against, loading, rotation
from bench.public_files import KINDS, SHAPES, write_shape
from bench.public_long import answer_memory, long_contexts
from bench.public_models import LongState, Ours
from bench.result import Result
from nanochat.config import ModelConfig
from nanochat.export.gguf.header import header_config
from nanochat.rows import PAGE

pytestmark = pytest.mark.usefixtures("soon_measured")

SMALL = {
    name: replace(
        config,
        vocab_size=1024,
        width=1024,
        num_layers=4,
        num_heads=8,
        num_kv_heads=config.num_kv_heads // 2,
        ffn_width=1024,
        delta_heads=8 if config.delta_key_heads else config.delta_heads,
        delta_key_heads=config.delta_key_heads // 4,
        # The file has it as float32.
        norm_eps=2.0**-20,
    )
    for name, config in SHAPES.items()
}


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_shape_is_a_model_of_that_shape(
    tmp_path: Path, config: ModelConfig, kind: str
) -> None:
    path = tmp_path / "x.gguf"

    write_shape(path, config, KINDS[kind])

    block = {"PQ2_0": 128, "Q2_0": 64, "TQ2_0": 256}[kind]
    found = header_config(path)
    assert found == replace(config, weight_block=block, activation_block=block)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("public")

    def write(name: str, kind: str) -> Path:
        path = folder / f"{name}-{kind}.gguf"
        if not path.exists():
            write_shape(path, SMALL[name], KINDS[kind])
        return path

    return write


Written = Callable[[str, str], Path]


def numbers(results: Iterable[Result]) -> dict[str, float]:
    """What was measured, each with a unit, all of them finite and above 0."""
    found = {result.what: result.ours for result in results}
    assert all(np.isfinite(number) and number > 0 for number in found.values()), found
    return found


def test_memory_after_loading_is_counted_without_that_of_the_process(written: Written) -> None:
    path = written("1.7B", "PQ2_0")

    found = numbers(loading("1.7B", path, 1))

    before, after, over_file = (
        found[f"1.7B: resident memory {what}"]
        for what in (
            "of a process before loading",
            "of a process after loading",
            "after loading, less that before, over the file",
        )
    )
    assert over_file == pytest.approx((after - before) * 1e6 / path.stat().st_size)


@pytest.mark.parametrize("kind", PEERS)
def test_a_shape_is_timed_beside_llama_cpp(written: Written, kind: str) -> None:
    work = replace(PEERS[kind], turns=(1, 1))

    results = list(
        against("8B", written("8B", "PQ2_0"), written("8B", kind), kind, work, threads=1)
    )

    found = {result.what: result for result in results}
    numbers(results)
    assert found["8B: decode"].peer_name == f"llama.cpp {kind}"
    assert found[f"8B: prompt of {work.prompt}"].peer_name == f"llama.cpp {kind}"


def test_rotations_are_timed_beside_none(written: Written) -> None:
    plain, rotated = (written(name, "PQ2_0") for name in ("27B", "27B rotated"))

    assert len(numbers(rotation(plain, rotated, 1, turns=(1, 1)))) == 6


@pytest.mark.parametrize("name", ["8B", "27B rotated"])
def test_a_long_context_is_timed_beside_a_short_one(written: Written, name: str) -> None:
    path = written(name, "PQ2_0")

    results = list(
        long_contexts(
            name, path, {"int8": None, "int4": 1e9}, 1, length=2 * PAGE, turns=1, seconds=0.01
        )
    )

    assert len(numbers(results)) == len(results) == 6
    assert all(result.bound for result in results)


@pytest.mark.parametrize("name", ["8B", "27B rotated"])
def test_a_long_state_is_that_of_a_text_of_that_length(written: Written, name: str) -> None:
    ours = Ours(written(name, "PQ2_0"), 1)
    ours.keep("int4")
    long = LongState(ours.engine, 3 * PAGE)

    long.start()
    long.decode()
    long.start()
    long.decode()

    (row,) = long.state.rows
    assert long.state.length(row) == 3 * PAGE + 1


def test_an_answer_is_drawn_within_memory(written: Written) -> None:
    sampling = {"temperature": 0.7, "top_k": 20, "top_p": 0.95}

    found = answer_memory("27B", written("27B", "PQ2_0"), sampling)

    assert 0.05 < found.ours < 10
    assert found.ok


def test_the_most_memory_of_a_process_has_all_stages_below_it() -> None:
    taken = {
        "python": Taken(peak=5, end=5, most_pages=10, pages=10),
        "load": Taken(peak=9, end=7, most_pages=30, pages=20),
        "generate": Taken(peak=9, end=7, most_pages=15, pages=1),
    }

    assert process_peak(taken) == 10 + 20 + 15
