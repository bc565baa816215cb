"""The catalog says of every model what one must know before its download, and what it says adds up."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.cost import cost
from nanochat.files import FileRecord
from nanochat.generation.stated import stated_options
from nanochat.lm import Model
from nanochat.presets import PRESETS
from nanochat.zoo import catalog, entries
from nanochat.zoo.catalog import CATALOG, canonical, entry_of, say_other_positions
from nanochat.zoo.entries import Entry, Pins, load_entries, shape_of, write_pins

PUBLIC = [entry for entry in CATALOG.values() if not entry.preset]
# As their authors name them.
LICENCES = {"Apache-2.0", "MIT", "Falcon-LLM", "Llama 3"}
REPOSITORIES = [
    *(f"prism-ml/Ternary-Bonsai-{size}-gguf" for size in ("1.7B", "4B", "8B", "27B", "2-27B")),
    *(f"prism-ml/Bonsai-{size}-gguf" for size in ("1.7B", "4B", "8B", "27B")),
    "microsoft/bitnet-b1.58-2B-4T",
    *(f"tiiuae/Falcon-E-{size}-{kind}" for size in ("1B", "3B") for kind in ("Base", "Instruct")),
    *(
        f"tiiuae/Falcon3-{size}-{kind}-1.58bit"
        for size in ("1B", "3B", "7B", "10B")
        for kind in ("Base", "Instruct")
    ),
    "HF1BitLLM/Llama3-8B-1.58-100B-tokens",
    *(f"SpectraSuite/TriLM_{size}_Unpacked" for size in ("99M", "560M", "1.1B", "3.9B")),
    *(f"openbmb/BitCPM4-{size}" for size in ("0.5B", "1B")),
    *(f"openbmb/BitCPM-CANN-{size}-gguf" for size in ("0.5B", "1B", "3B", "8B")),
]


@pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)
def test_an_entry_is_one_of_ours_or_of_a_repository(entry: Entry) -> None:
    assert (entry.preset in PRESETS) != (entry.repo is not None)
    assert entry.name == entry.name.lower()
    assert entry.description
    for alias in entry.aliases:
        assert canonical(alias) == entry.name
        assert alias not in CATALOG


def test_every_preset_has_a_name() -> None:
    # One is there to be trained for other runtimes.
    assert {entry.preset for entry in CATALOG.values()} - {""} == set(PRESETS) - {"tiny-plain"}


@pytest.mark.parametrize("repo", REPOSITORIES)
def test_every_public_ternary_model_has_an_entry(repo: str) -> None:
    entry = entry_of(repo)

    assert entry is not None
    assert repo not in entry.other_repos


@pytest.mark.parametrize("entry", PUBLIC, ids=lambda entry: entry.name)
def test_of_other_people_s_models_it_is_said_whose_terms_and_which_file(entry: Entry) -> None:
    assert entry.licence in LICENCES
    assert entry.base
    assert entry.part == "" or entry.part in entry.why
    assert (entry.thinking == "") or entry.template
    assert stated_options(entry.sampling, where=entry.name) == entry.sampling
    assert entry.config is None or entry.context in (0, entry.config.context_length)


@pytest.mark.parametrize(
    "entry", [e for e in CATALOG.values() if not e.files], ids=lambda entry: entry.name
)
def test_a_name_is_the_preset_s_until_there_are_weights(entry: Entry) -> None:
    assert not entry.preset or entry.name == entry.preset
    assert not entry.is_pinned
    assert not entry.tried


@pytest.mark.parametrize(
    ("name", "parameters", "gigabytes"),
    [
        ("ternary-bonsai-1.7b", 1.72e9, 0.46),
        ("ternary-bonsai-4b", 4.02e9, 1.07),
        ("ternary-bonsai-8b", 8.19e9, 2.18),
        ("ternary-bonsai-27b", 26.9e9, 7.15),
        ("ternary-bonsai-2-27b", 26.9e9, 7.21),
        ("bitnet-2b", 2.4e9, 1.18),
        ("falcon3-1b-base", 1.67e9, None),
        ("falcon3-3b-base", 3.23e9, None),
        ("falcon3-7b-base", 7.46e9, None),
        ("falcon3-10b-base", 10.3e9, None),
        ("llama3-8b-1.58", 8.03e9, None),
        ("trilm-99m", 99e6, None),
        ("trilm-190m", 190e6, None),
        ("trilm-390m", 390e6, None),
        ("trilm-560m", 560e6, None),
        ("trilm-830m", 830e6, None),
        ("trilm-1.1b", 1.15e9, None),
        ("trilm-1.5b", 1.5e9, None),
        ("trilm-2.4b", 2.4e9, None),
        ("trilm-3.9b", 3.9e9, None),
    ],
)
def test_a_shape_has_the_parameters_and_the_size_that_its_authors_give(
    name: str, parameters: float, gigabytes: float | None
) -> None:
    config = CATALOG[name].config
    assert config is not None

    costs = cost(config, context=1)

    assert costs.parameters == pytest.approx(parameters, rel=0.03)
    if gigabytes is not None:
        assert costs.stored_bytes == pytest.approx(gigabytes * 1e9, rel=0.02)


def test_keys_and_values_are_those_that_were_counted_by_hand() -> None:
    sizes = {}
    for size in ("1.7b", "4b", "8b", "2-27b"):
        config = CATALOG[f"ternary-bonsai-{size}"].config
        assert config is not None
        sizes[size] = 32_768 * cost(config, context=1, kv_cache="float16").kv_bytes_per_token / 1e9

    assert sizes == pytest.approx({"1.7b": 3.76, "4b": 4.83, "8b": 4.83, "2-27b": 2.15}, rel=0.01)


PLAIN: dict[str, Any] = {
    "rope_type": "ntk",
    "rope_scale": 1.0,
    "rope_magnitude": 1.0,
    "rope_original_context": 0,
    "context_length": 16_384,
}


@pytest.mark.parametrize(
    ("changes", "is_said"),
    [
        (PLAIN, True),
        (PLAIN | {"weight_block": 256, "table_format": "int8", "norm_eps": 1.0000001e-6}, True),
        (PLAIN | {"num_layers": 27}, False),
        ({}, False),
    ],
)
def test_a_copy_without_the_scaling_of_positions_is_warned_of(
    changes: dict[str, Any], is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = CATALOG["ternary-bonsai-8b"].config
    assert config is not None

    say_other_positions("x", replace(config, **changes))

    said = "x: it has the shapes of bonsai-8b and ternary-bonsai-8b, whose positions are scaled (yarn, 4 times"
    assert (said in caplog.text) == is_said


def test_that_is_asked_of_every_model_that_is_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = CATALOG["nanochat-tiny"]
    assert entry.config is not None
    shape = shape_of(replace(entry.config, rope_scale=2.0))
    monkeypatch.setattr(catalog, "CATALOG", {"x": replace(entry, name="x", preset="", shape=shape)})

    Model.from_pretrained(catalog.directory(entry), backend="reference")

    assert (
        "it has the shapes of x, whose positions are scaled (ntk, 2 times, to read" in caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": "abc"}, "pin its whole commit"),
        ({"revision": "0" * 40}, "pin its commit and its files"),
        ({"files": {"x": FileRecord(bytes=1, sha256="0" * 64)}}, "pin its commit and its files"),
        ({"ships": True}, "pin its commit and its files"),
    ],
)
def test_an_entry_pins_its_commit_and_all_files_or_nothing(
    changes: dict[str, object], message: str
) -> None:
    fields = {"name": "x", "repo": "org/x", "description": "x", "licence": "MIT", **changes}

    with pytest.raises(AssertionError, match=message):
        Entry(**fields)  # type: ignore[arg-type]  # the mistakes are values


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files of the catalog, in the place of those."""
    folder = tmp_path / "models"
    shutil.copytree(Path(entries.__file__).parent / "models", folder)
    monkeypatch.setattr(entries, "_models", lambda: folder)
    return folder


@pytest.mark.usefixtures("copied")
def test_what_is_written_of_an_entry_is_read_again_and_nothing_else_changes() -> None:
    pins = Pins(
        revision="a" * 40,
        files={"x-PQ2_0.gguf": FileRecord(bytes=3, sha256="b" * 64)},
        shape={**CATALOG["ternary-bonsai-4b"].shape, "context_length": 4096},
    )

    path = write_pins("ternary-bonsai-4b", pins)

    found = load_entries()
    entry = found.pop("ternary-bonsai-4b")
    assert path.name == "ternary-bonsai.json"
    assert (entry.revision, entry.files, entry.shape) == (pins.revision, pins.files, pins.shape)
    assert entry.is_pinned
    # What is like it follows.
    assert found.pop("bonsai-4b").shape == entry.shape
    assert found == {
        k: v for k, v in CATALOG.items() if k not in ("ternary-bonsai-4b", "bonsai-4b")
    }


def test_the_files_of_the_catalog_are_written_as_pinning_writes_them(copied: Path) -> None:
    texts = {path.name: path.read_text() for path in copied.iterdir()}

    assert texts == {
        name: f"{json.dumps(json.loads(text), indent=2, ensure_ascii=False)}\n"
        for name, text in texts.items()
    }
