"""Before a download, the command line tells what a model takes here, how fast it will be, and what its name means."""

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from nanochat import memory
from nanochat.backends.host import num_cores
from nanochat.backends.numba.runtime.isa import chosen
from nanochat.backends.numba.tuning import bandwidth
from nanochat.backends.numba.tuning.bandwidth import Bandwidth
from nanochat.cost import cost
from nanochat.export.directory import save_model
from nanochat.files import record_file
from nanochat.ops import Storage
from nanochat.zoo import catalog, entries, hub
from nanochat.zoo.catalog import CATALOG
from nanochat.zoo.entries import Entry, load_entries
from tests.core.command_line import Run
from tests.core.thinking_models import PLAIN, SWITCHED, THOUGHT, thinker
from tests.export.foreign_ggufs import Case, write
from tests.zoo.hub_client import HubClient

GB = 10**9
SPEED = Bandwidth(
    isa=chosen(),
    threads=num_cores(),
    read=35e9,
    weights=30e9,
    attention=1e11,
    int4_attention=8e10,
)
STORAGES = get_args(Storage)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with AVX2 and 8 GB, of which 6 are free, whose memory has been measured."""
    monkeypatch.setenv("NANOCHAT_ISA", "avx2")
    monkeypatch.setenv("NANOCHAT_BACKEND", "numba")
    monkeypatch.setattr(memory, "free_bytes", lambda: 6 * GB)
    monkeypatch.setattr(bandwidth, "known", lambda: SPEED)
    monkeypatch.setattr(bandwidth, "measure", lambda: pytest.fail("it was measured again"))


@pytest.fixture
def here(hub_client: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    """The real client, where there is no directory of any name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub_client


def test_show_tells_memory_and_speed_for_every_storage_of_keys_and_values(run: Run) -> None:
    entry = CATALOG["ternary-bonsai-8b"]
    assert entry.config is not None

    told = run("models", "show", "ternary-bonsai-8b", "--json").last_json["expected"]

    assert isinstance(told, dict)
    rows = told["memory"]
    assert [(row["context"], row["kv_cache"]) for row in rows] == [
        (context, storage) for context in (256, 4096, 32768) for storage in STORAGES
    ]
    for row in rows:
        costs = cost(entry.config, context=row["context"], kv_cache=row["kv_cache"])
        rate = 8e10 if row["kv_cache"] == "int4" else 1e11
        seen = costs.read_bytes_per_token - costs.weight_bytes_per_token
        # 36 layers, and 2 times 2 operations for each of 32 heads of 128 features.
        looking = max(seen / 35e9, 36 * 4 * 32 * 128 * row["context"] / rate)
        seconds = costs.weight_bytes_per_token / 30e9 + looking
        assert row["read_bytes_per_token"] == costs.read_bytes_per_token
        assert row["tokens_per_second"] == pytest.approx(1 / seconds, rel=1e-2)
        assert row["bytes"] > costs.stored_bytes + row["context"] * costs.kv_bytes_per_token
        assert row["fits"] == (row["bytes"] <= 6 * GB)
    assert {row["fits"] for row in rows} == {True, False}
    assert told["free_bytes"] == 6 * GB


def test_a_newcomer_with_8_gb_is_told_which_bonsai_runs_and_how_fast(run: Run) -> None:
    lines = {line.split()[0]: line for line in run("models", "list").out.splitlines()}

    speeds = {}
    for size in ("1.7b", "4b", "8b"):
        match = re.search(r" fits, ([\d.]+) tokens/s ", lines[f"ternary-bonsai-{size}"])
        assert match is not None
        speeds[size] = float(match[1])
    assert speeds == pytest.approx({"1.7b": 59, "4b": 26, "8b": 14.4}, rel=0.03)
    assert re.search(r" needs 6\.\d+ GB ", lines["ternary-bonsai-27b"])
    # Its speed is not that of memory.
    assert "tokens/s" not in lines["nanochat-tiny"]


def test_show_says_what_is_taken_why_and_on_whose_terms(run: Run) -> None:
    shown = run("models", "show", "ternary-bonsai-8b").out

    assert re.search(r"^licence +Apache-2\.0$", shown, re.MULTILINE)
    assert re.search(r"^part +PQ2_0$", shown, re.MULTILINE)
    assert re.search(r"^why +PQ2_0: 2\.125 bits a weight", shown, re.MULTILINE)
    assert re.search(r"^sampling +temperature 0\.5, top_k 20, top_p 0\.85$", shown, re.MULTILINE)
    assert re.search(r"^weights +.*-gguf on the Hub, unpinned$", shown, re.MULTILINE)
    assert re.search(r"^tried +not tried on the published weights$", shown, re.MULTILINE)
    assert re.search(r"^ +4096 +int8 +\d\.\d+ GB +yes +2\.3\d GB +\d+$", shown, re.MULTILINE)


def test_what_does_not_fit_is_told_with_what_would(run: Run) -> None:
    shown = run("models", "show", "ternary-bonsai-8b").out

    match = re.search(
        r"^the longest texts that fit: (\d+) tokens with --kv-cache float32, (\d+) tokens with --kv-cache float16, "
        r"(\d+) tokens with --kv-cache int8, (\d+) tokens with --kv-cache int4",
        shown,
        re.MULTILINE,
    )
    assert match is not None
    wide, half, narrow, least = map(int, match.groups())
    assert 4096 < wide < half < narrow < least <= 65536


def test_a_model_that_two_bits_are_too_many_for_fits_in_five_codes_to_a_byte(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 7 * GB)

    listed = run("models", "list").out
    monkeypatch.setenv("NANOCHAT_ISA", "portable")
    portable = run("models", "list").out

    assert re.search(r"^ternary-bonsai-27b .* fits", listed, re.MULTILINE)
    assert re.search(r"^ternary-bonsai-27b .* needs 7\.\d+ GB ", portable, re.MULTILINE)


def test_what_never_fits_is_told_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 1.5 * GB)

    shown, listed = run("models", "show", "ternary-bonsai-8b").out, run("models", "list").out

    assert "it does not fit, however short the text: close other programs" in shown
    assert re.search(r"^ternary-bonsai-8b +2\.18 GB +needs [12]\.\d+ GB ", listed, re.MULTILINE)
    assert re.search(r"^ternary-bonsai-4b .* fits with \w+, ", listed, re.MULTILINE)


def test_where_nobody_knows_what_is_free_nothing_is_said_to_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: None)

    told = run("models", "show", "ternary-bonsai-4b", "--json").last_json["expected"]

    assert isinstance(told, dict)
    assert {row["fits"] for row in told["memory"]} == {None}
    assert told["longest_context"] is None
    assert "unknown" in run("models", "show", "ternary-bonsai-4b").out


def test_a_context_beyond_the_trained_one_is_a_warning_with_the_number(run: Run) -> None:
    result = run(
        "models", "show", "ternary-bonsai-1.7b", "--context", 100, "--context", 65536, "--json"
    )

    assert "a text of 65536 tokens is beyond the 32768 that ternary-bonsai-1.7b was" in result.err
    told = result.last_json["expected"]
    assert isinstance(told, dict)
    assert {row["context"] for row in told["memory"]} == {100, 65536}


def test_a_context_within_the_trained_one_is_no_warning(run: Run) -> None:
    assert "beyond" not in run("models", "show", "trilm-99m", "--context", 2048).err
    assert "beyond" not in run("models", "show", "trilm-99m").err


def test_a_backend_whose_speed_was_not_measured_tells_memory_only(run: Run) -> None:
    told = run(
        "models", "show", "ternary-bonsai-1.7b", "--backend", "reference", "--json"
    ).last_json["expected"]

    assert isinstance(told, dict)
    assert {row["tokens_per_second"] for row in told["memory"]} == {None}


def test_what_was_not_measured_is_measured_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure() -> Bandwidth:
        measured.append(1)
        return SPEED

    monkeypatch.setattr(bandwidth, "known", lambda: None)
    monkeypatch.setattr(bandwidth, "measure", measure)

    run("models", "list")
    assert measured == []
    told = run("models", "show", "ternary-bonsai-1.7b", "--json").last_json["expected"]

    assert measured == [1]
    assert isinstance(told, dict)
    assert told["bandwidth"] == {**vars(SPEED)}


def test_a_model_whose_shape_is_not_known_says_so(run: Run) -> None:
    result = run("models", "show", "falcon-e-1b-base")

    assert "its configuration is not: see tiiuae/Falcon-E-1B-Base on the Hub" in result.out
    assert result.code == 0


# At the Hub.


def put(client: HubClient, folder: Path, *, kinds: tuple[str, ...] = ("PQ2_0", "F16")) -> None:
    case = Case(architecture="qwen3", kind="Q2_0", table="F16")
    path = write(folder / "model.gguf", case)
    files = {f"B-{kind}.gguf": path.read_bytes() for kind in kinds}
    client.hub.add("org/bonsai", {**files, "README.md": b"# A card\n"})


def test_a_repository_that_is_not_here_is_told_from_its_headers(
    run: Run, here: HubClient, tmp_path: Path
) -> None:
    put(here, tmp_path)

    told = run("models", "show", "org/bonsai", "--json").last_json
    shown = run("models", "show", "org/bonsai:F16").out

    assert (told["file"], told["others"]) == ("B-PQ2_0.gguf", ["B-F16.gguf"])
    assert "fastest" in str(told["why"])
    assert told["context_length"] == 128
    expected = told["expected"]
    assert isinstance(expected, dict)
    assert {row["context"] for row in expected["memory"]} == {128}
    assert re.search(r"^why +it was asked for$", shown, re.MULTILINE)
    assert not list(here.cache.glob("**/*.gguf"))


def test_a_repository_whose_header_tells_nothing_is_told_with_the_reason(
    run: Run, here: HubClient
) -> None:
    here.hub.add("org/bonsai", {"B-PQ2_0.gguf": b"GGUF" + bytes(100)})

    result = run("models", "show", "org/bonsai")

    assert re.search(r"^problem +org/bonsai/B-PQ2_0\.gguf: a big-endian", result.out, re.MULTILINE)
    assert "what it takes of memory is not known" in result.out
    assert result.code == 0


def test_offline_nothing_is_asked(run: Run, here: HubClient) -> None:
    here.set_offline()

    result = run("models", "show", "org/bonsai")

    assert result.code == 1
    assert result.err.count("\n") == 1
    assert here.hub.requests == []


# What the catalog says of a model's use.


@pytest.fixture
def thoughtful(here: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of the Hub that thinks if it is not told otherwise, and is meant not to."""
    monkeypatch.setenv("NANOCHAT_BACKEND", "reference")
    # Its files say nothing of their use.
    save_model(tmp_path / "t", thinker(SWITCHED))
    (tmp_path / "t" / "generation_config.json").unlink()
    (tmp_path / "t" / "nanochat.json").unlink()
    here.hub.add("org/t", {p.name: p.read_bytes() for p in (tmp_path / "t").iterdir()})
    entry = Entry(
        name="t",
        repo="org/t",
        description="x",
        licence="MIT",
        template="x",
        thinking="off",
        sampling={"temperature": 0.5, "top_k": 1},
    )
    for module in (catalog, hub):
        monkeypatch.setattr(module, "CATALOG", {"t": entry})
    return "org/t"


@pytest.mark.parametrize("words", [("org/t",), ("t", "--unpinned")], ids=["repository", "name"])
def test_a_model_that_is_meant_to_answer_at_once_does(
    run: Run, thoughtful: str, words: tuple[str, ...]
) -> None:
    del thoughtful
    name, *options = words

    def reasoning(*more: str) -> object:
        return run("chat", name, "Hi", *options, *more, "--json").last_json["reasoning"]

    assert reasoning() == ""
    assert reasoning("--think") == THOUGHT
    assert reasoning("--thinking-budget", "100") == THOUGHT


def test_a_template_without_a_switch_is_left_alone(
    run: Run, thoughtful: str, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(PLAIN)

    result = run("chat", thoughtful, "Hi", "--template", tmp_path / "own.jinja")

    assert result.code == 0


def test_sampling_that_the_files_do_not_state_is_the_catalog_s(run: Run, thoughtful: str) -> None:
    result = run("chat", thoughtful, "Hi")

    assert "sampling as the model's authors state it in the catalog: temperature 0.5" in result.err


# Pinning.


@pytest.fixture
def unpinned(here: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of entries in the place of the catalog's, with one of a repository that is at the Hub."""
    put(here, tmp_path)
    folder = tmp_path / "models"
    shutil.copytree(Path(entries.__file__).parent / "models", folder)
    said = {"repo": "org/bonsai", "part": "PQ2_0", "description": "x", "licence": "MIT"}
    (folder / "x.json").write_text(json.dumps({"models": {"b": said}}))
    monkeypatch.setattr(entries, "_models", lambda: folder)
    _reload(monkeypatch)
    return folder


def _reload(monkeypatch: pytest.MonkeyPatch) -> dict[str, Entry]:
    found = load_entries()
    for module in (catalog, hub):
        monkeypatch.setattr(module, "CATALOG", found)
    return found


@pytest.mark.usefixtures("unpinned")
def test_pin_writes_commit_files_and_configuration_without_fetching_weights(
    run: Run, here: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run("models", "pin", "b", "--json").last_json

    entry = _reload(monkeypatch)["b"]
    record = record_file(tmp_path / "model.gguf")
    assert entry.revision == told["commit"] == here.hub.repos["org/bonsai"].branches["main"]
    assert entry.files == {"B-PQ2_0.gguf": record}
    assert entry.config is not None
    assert (entry.config.width, entry.config.context_length) == (256, 128)
    assert all(request.range for request in here.hub.asked("/cdn/*", "GET"))
    assert told["configuration"] == "of the header"


@pytest.mark.usefixtures("unpinned")
def test_from_then_on_the_name_stands_for_these_files_only(
    run: Run, here: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "b is not pinned" in run("models", "pull", "b").err
    run("models", "pin", "b")
    _reload(monkeypatch)
    here.hub.commit("org/bonsai", {"B-PQ2_0.gguf": b"GGUF other weights"})

    pulled = run("models", "pull", "b", "--json").last_json

    assert pulled["commit"] == _reload(monkeypatch)["b"].revision
    assert pulled["files"]


def test_a_header_that_tells_another_shape_than_the_entry_wins_and_is_told(
    run: Run, unpinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.loads((unpinned / "x.json").read_text())
    said["models"]["b"]["shape"] = {**CATALOG["ternary-bonsai-1.7b"].shape, "context_length": 99}
    (unpinned / "x.json").write_text(json.dumps(said))
    _reload(monkeypatch)

    result = run("models", "pin", "b")

    assert "warning: the header tells another configuration than the entry: " in result.err
    assert "context_length 99 becomes 128" in result.err
    assert _reload(monkeypatch)["b"].context_length == 128


def test_where_the_header_tells_nothing_the_shape_of_the_entry_stays(
    run: Run, here: HubClient, unpinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.loads((unpinned / "x.json").read_text())
    said["models"]["b"]["like"] = "ternary-bonsai-1.7b"
    (unpinned / "x.json").write_text(json.dumps(said))
    here.hub.commit("org/bonsai", {"B-PQ2_0.gguf": b"GGUF" + bytes(100)})
    _reload(monkeypatch)

    result = run("models", "pin", "b")

    assert "the configuration stays as the entry has it, for the header tells none" in result.err
    pinned = _reload(monkeypatch)["b"]
    assert pinned.is_pinned
    assert pinned.shape == CATALOG["ternary-bonsai-1.7b"].shape


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nanochat-tiny", "nanochat-tiny is in no repository of the Hub: pin one of "),
        ("nonsense", "nonsense is no name of the catalog: pin one of "),
    ],
)
def test_what_cannot_be_pinned_is_refused_with_what_can(run: Run, name: str, message: str) -> None:
    result = run("models", "pin", name)

    assert result.code == 2
    assert message in result.err
    assert "ternary-bonsai-8b" in result.err


@pytest.mark.usefixtures("unpinned")
def test_a_part_that_the_repository_lacks_is_refused_with_what_it_has(
    run: Run, here: HubClient
) -> None:
    here.hub.commit("org/bonsai", {"B-PQ2_0.gguf": None})

    result = run("models", "pin", "b")

    assert result.code == 1
    assert "org/bonsai has no 'PQ2_0': it holds B-F16.gguf" in result.err
