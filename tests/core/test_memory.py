"""A model that does not fit is refused before anything is taken, and one that fits is not."""

import dataclasses
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import psutil
import pytest

from nanochat import backends, memory
from nanochat.backends.free_memory import group_bytes
from nanochat.cost import cost
from nanochat.errors import InputError, MemoryShortageError, NanochatError
from nanochat.memory import (
    free_bytes,
    longest_context,
    needed_bytes,
    require_free,
    require_room,
    rooms,
)
from nanochat.ops import Storage
from nanochat.presets import preset

# Every backend, and whether it is given a graph.
RUNS = [
    *((name, False) for name in backends.BACKENDS),
    *((name, True) for name in backends.graphs()),
]
CONFIG = preset("small-560m")
GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def second_version(folder: str, *, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\nactive_file {cached // 2}\ninactive_file {cached // 2}\n",
    }


# What is free.


def test_the_machine_says_how_much_is_free() -> None:
    free = free_bytes()

    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


def test_a_container_leaves_what_it_does_not_use_and_what_it_caches_of_files(
    tmp_path: Path,
) -> None:
    files = second_version("sys/fs/cgroup", limit="1000000", used=700_000, cached=200_000)
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", **files})

    assert group_bytes(root) == 500_000
    assert free_bytes(root=root) == 500_000


@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_the_narrowest_of_all_groups_above_a_process_counts(tmp_path: Path, mount: str) -> None:
    files = {
        "proc/self/cgroup": "0::/user.slice/job/step\n",
        **second_version(f"{mount}/user.slice/job/step", limit="max", used=10),
        **second_version(f"{mount}/user.slice/job", limit="5000", used=3000, cached=400),
        **second_version(f"{mount}/user.slice", limit="9000", used=3000),
    }

    assert group_bytes(write(tmp_path, files)) == 2400


def test_groups_of_the_first_version_count_too(tmp_path: Path) -> None:
    mount = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n",
        f"{mount}/box/memory.limit_in_bytes": "8000\n",
        f"{mount}/box/memory.usage_in_bytes": "5000\n",
        f"{mount}/box/memory.stat": "inactive_file 1\ntotal_inactive_file 600\n",
        f"{mount}/memory.limit_in_bytes": "9223372036854771712\n",
        f"{mount}/memory.usage_in_bytes": "700000\n",
    }

    assert group_bytes(write(tmp_path, files)) == 3600


def test_a_container_that_sees_only_its_own_group_finds_it(tmp_path: Path) -> None:
    """The path is that of the host, and the folder is mounted where the host has its root."""
    files = second_version("sys/fs/cgroup", limit="4000", used=1000)
    root = write(tmp_path, {"proc/self/cgroup": "0::/../../docker/0123abc\n", **files})

    assert group_bytes(root) == 3000


def test_a_group_that_has_taken_too_much_leaves_nothing(tmp_path: Path) -> None:
    files = second_version("sys/fs/cgroup", limit="1000", used=5000)

    assert free_bytes(root=write(tmp_path, {"proc/self/cgroup": "0::/\n", **files})) == 0


@pytest.mark.parametrize("text", ["", "0::/\n", "nonsense\n"], ids=["none", "no limit", "other"])
def test_without_a_limit_a_group_says_nothing(tmp_path: Path, text: str) -> None:
    assert group_bytes(write(tmp_path, {"proc/self/cgroup": text})) is None


# What is needed.


@pytest.mark.parametrize(("backend", "is_graph"), RUNS)
def test_more_tokens_texts_and_parameters_need_more(backend: str, is_graph: bool) -> None:
    needed = partial(needed_bytes, backend=backend, is_graph=is_graph)
    least = needed(CONFIG, context=16)

    # While a graph is exported more is taken than a text needs.
    if is_graph or backend not in backends.graphs():
        assert needed(CONFIG, context=4096) > least
    assert needed(CONFIG, context=4096, batch=64) > least
    assert needed(preset("nano-1b"), context=16) > least


@pytest.mark.parametrize(("backend", "is_graph"), RUNS)
def test_a_dense_table_is_counted_with_four_bytes_a_number(backend: str, is_graph: bool) -> None:
    dense = dataclasses.replace(CONFIG, table_format="dense")

    needed = needed_bytes(dense, backend, context=16, is_graph=is_graph)

    assert needed > 4 * CONFIG.vocab_size * CONFIG.width


def test_the_head_is_computed_for_the_last_token_of_a_prompt_only() -> None:
    small, large = (
        dataclasses.replace(CONFIG, table_format="ternary", vocab_size=size)
        for size in (512, 2**18)
    )

    small_growth, large_growth = (
        needed_bytes(config, "numba", context=256) - needed_bytes(config, "numba", context=1)
        for config in (small, large)
    )

    assert large_growth <= small_growth


def test_narrow_keys_and_values_need_less() -> None:
    wide, half, narrow, least = (
        needed_bytes(CONFIG, "numba", context=4096, kv_cache=kv_cache)
        for kv_cache in get_args(Storage)
    )

    assert wide > half > narrow > least


def test_unpacked_codes_need_more_than_packed_ones() -> None:
    packed, unpacked = (needed_bytes(CONFIG, name, context=16) for name in ("numba", "reference"))

    assert 2 * packed < unpacked


def test_a_backend_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(InputError, match="nothing is known of the memory of backend 'mine'"):
        needed_bytes(CONFIG, "mine", context=16)


def test_a_graph_that_is_there_needs_less_than_one_that_must_be_exported() -> None:
    made, there = (
        needed_bytes(CONFIG, "onnx", context=16, is_graph=is_graph) for is_graph in (False, True)
    )

    assert there < made


# The refusal.


@pytest.fixture
def _loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All backends are there already, as far as anyone can see."""
    for known in backends.BACKENDS.values():
        monkeypatch.setitem(sys.modules, known.module, sys)


@pytest.mark.usefixtures("_loaded")
def test_the_refusal_names_what_is_needed_what_is_free_and_what_helps() -> None:
    with pytest.raises(MemoryShortageError) as caught:
        require_room("org/model", CONFIG, "reference", free=GIB // 2, others=["numba", "mlx"])

    assert str(caught.value).startswith("org/model needs about 0.80 GB on backend reference, ")
    assert "and 0.54 GB of memory are free: choose backend numba (0." in str(caught.value)
    assert str(caught.value).endswith("close other programs, or choose a smaller model")
    assert isinstance(caught.value, NanochatError)
    assert isinstance(caught.value, MemoryError)


def test_a_fix_that_would_not_fit_either_is_not_proposed() -> None:
    with pytest.raises(MemoryShortageError) as caught:
        require_room("m", CONFIG, "reference", free=GIB // 8, others=["numba", "mlx"])

    assert "choose backend" not in str(caught.value)
    assert "kv_cache" not in str(caught.value)


@pytest.mark.usefixtures("_loaded")
def test_narrow_keys_and_values_are_proposed_where_they_make_it_fit() -> None:
    free = needed_bytes(CONFIG, "numba", context=256, kv_cache="int8", is_short=True)

    with pytest.raises(MemoryShortageError, match=r"free: pass kv_cache='int8' \(0\.\d\d GB\), "):
        require_room("m", CONFIG, "numba", free=free)


@pytest.mark.usefixtures("_loaded")
@pytest.mark.parametrize(("backend", "is_graph"), RUNS)
def test_what_just_fits_is_not_refused(backend: str, is_graph: bool) -> None:
    needed = needed_bytes(CONFIG, backend, context=256, is_graph=is_graph, is_short=True)

    require_room("m", CONFIG, backend, free=needed, is_graph=is_graph)

    with pytest.raises(MemoryShortageError):
        require_room("m", CONFIG, backend, free=needed - 1, is_graph=is_graph)


@pytest.mark.parametrize(("backend", "is_graph"), RUNS)
def test_a_backend_that_must_be_loaded_first_needs_room_too(
    monkeypatch: pytest.MonkeyPatch, backend: str, is_graph: bool
) -> None:
    needed = needed_bytes(CONFIG, backend, context=256, is_graph=is_graph, is_short=True)
    for known in backends.BACKENDS.values():
        monkeypatch.delitem(sys.modules, known.module, raising=False)

    with pytest.raises(MemoryShortageError):
        require_room("m", CONFIG, backend, free=needed, is_graph=is_graph)


@pytest.mark.usefixtures("_loaded")
def test_where_two_bits_do_not_fit_five_codes_to_a_byte_do(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = partial(needed_bytes, CONFIG, "numba", context=256)
    monkeypatch.setenv("NANOCHAT_ISA", "portable")
    assert needed(is_short=True) == needed()

    monkeypatch.setenv("NANOCHAT_ISA", "avx2")

    ternary = cost(CONFIG, context=1).ternary_parameters
    assert 0.99 < (needed() - needed(is_short=True)) / (1.05 * ternary * 3 / 64) < 1.05
    require_room("m", CONFIG, "numba", free=needed() - 1)
    (room, *_) = rooms(CONFIG, "numba", contexts=[256], free=needed() - 1)
    assert (room.fits, room.bytes) == (True, needed(is_short=True))


@pytest.mark.usefixtures("_loaded")
def test_a_context_that_does_not_fit_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    free = needed_bytes(CONFIG, "numba", context=256) + 10**8

    require_room("org/model", CONFIG, "numba", free=free)

    message = caplog.messages[-1]
    assert message.startswith("org/model: a text of all 4096 tokens of its context needs 0.09 GB")
    assert "about 2290 tokens fit" in message
    assert (
        "fit: pass kv_cache='float16' (4096 tokens), pass kv_cache='int8' (4096 tokens), "
        "pass kv_cache='int4' (4096 tokens), " in message
    )


@pytest.mark.usefixtures("_loaded")
def test_the_longest_text_is_the_last_that_fits() -> None:
    # Weights are kept in less there, on a processor for which there is a smaller form.
    least = needed_bytes(CONFIG, "numba", context=256, is_short=True)
    each = cost(CONFIG, context=1).kv_bytes_per_token

    longest = partial(longest_context, CONFIG, "numba", kv_cache="float32")

    assert longest(free=least - 1) == 0
    assert longest(free=least) == 256
    assert longest(free=least + 100 * each - 1) == 355
    assert longest(free=least + 100 * each) == 356
    assert longest(free=2**40) == 4096


@pytest.mark.usefixtures("_loaded")
def test_room_is_told_for_every_form_of_keys_and_values() -> None:
    free = needed_bytes(CONFIG, "numba", context=256, kv_cache="float16") + 10**7

    found = rooms(CONFIG, "numba", contexts=(256, 4096), free=free)

    assert [(room.context, room.kv_cache) for room in found] == [
        (context, storage) for context in (256, 4096) for storage in get_args(Storage)
    ]
    assert [room.fits for room in found] == [room.bytes <= free for room in found]
    assert {room.fits for room in found} == {True, False}
    assert {room.fits for room in rooms(CONFIG, "numba", contexts=(256,), free=None)} == {None}


def test_a_graph_keeps_keys_and_values_in_one_form() -> None:
    found = rooms(CONFIG, "onnx", contexts=(256,), free=2**40)

    assert [room.kv_cache for room in found] == ["float32"]


def test_a_context_that_fits_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    require_room("m", CONFIG, "numba", free=GIB)

    assert not caplog.messages


def test_files_that_are_read_whole_must_fit_before_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)

    require_free("org/model", 10**9)
    with pytest.raises(MemoryShortageError, match=r"take 2\.00 GB .* 1\.00 GB of memory are free"):
        require_free("org/model", 2 * 10**9)


def test_where_nobody_knows_what_is_free_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", unknown)
    # Commands that ran before in this process have set the level of this one.
    caplog.set_level(logging.DEBUG, logger="nanochat")

    require_room("m", preset("large-7b"), "reference")

    assert free_bytes() is None
    assert "free memory is unknown (/proc/meminfo), so no model is refused" in caplog.text


LIMITED = """
import psutil
import resource
from nanochat import backends, memory
from nanochat.presets import preset

used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
memory.require_room("org/model", preset("small-560m"), "reference")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep this limit")
def test_a_process_that_may_not_take_as_much_is_told_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], check=False, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert "MemoryShortageError: org/model needs about 0.8" in done.stderr
    # Of 2**28 bytes of address space, half are kept for what is not the model's.
    assert "and 0.13 GB of memory are free" in done.stderr
