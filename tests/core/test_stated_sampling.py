"""How a model's authors want tokens to be chosen is taken from folders and GGUF files alike, and said."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import gguf
import pytest

from nanochat.export.directory import save_model
from nanochat.export.format import ModelFiles
from nanochat.export.formats import FORMATS, load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.sampling import read_sampling
from nanochat.export.gguf.write import write_gguf
from nanochat.generation.stated import stated_options
from nanochat.lm import from_pretrained
from tests.core.command_line import Run
from tests.export.foreign_ggufs import Case, write
from tests.parity.random_models import random_bundle

# Qwen3's, as its folder has them.
STATED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.05}
GENERATION = {"do_sample": True, **STATED, "max_new_tokens": 99, "transformers_version": "5.23.0"}
KEYS = {
    "general.sampling.temp": 0.6,
    "general.sampling.top_k": 20,
    "general.sampling.top_p": 0.95,
    "general.sampling.min_p": 0.01,
    "general.sampling.penalty_repeat": 1.05,
}
IN_WORDS = "temperature 0.6, top_k 20, top_p 0.95, min_p 0.01, repetition_penalty 1.05"


@pytest.fixture(scope="module", params=["folder", "gguf", "foreign gguf"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    bundle = dataclasses.replace(random_bundle(), generation=GENERATION)
    match request.param:
        case "folder":
            save_model(path / "x", bundle)
            return path / "x"
        case "gguf":
            write_gguf(path / "x.gguf", bundle)
            return path / "x.gguf"
        case _:
            return write(path / "x.gguf", Case(architecture="qwen3"), changes=KEYS)


def place(model: Path) -> str:
    return "generation_config.json" if model.is_dir() else "general.sampling"


def test_a_model_says_what_its_authors_state_and_where(model: Path) -> None:
    loaded = from_pretrained(model, backend="reference")

    assert loaded.stated_options == STATED
    described = loaded.describe()
    assert (described["sampling"], described["sampling_from"]) == (STATED, place(model))


def test_info_says_so_without_the_weights(run: Run, model: Path) -> None:
    shown = run("info", model)

    assert f"{IN_WORDS} ({place(model)})" in shown.out
    found = run("info", model, "--json").last_json
    assert (found["sampling"], found["sampling_from"]) == (STATED, place(model))


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_commands_take_it_unless_they_are_told_otherwise(
    run: Run, model: Path, verb: str, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    template = ("--template", tmp_path / "own.jinja") if verb == "chat" else ()
    loaded = from_pretrained(model, backend="reference")
    ids = loaded.tokenizer.encode("to be")
    prompt = ids if verb == "chat" else loaded.encode_prompt("to be")

    def written(*options: object) -> tuple[object, str]:
        found = run(
            *(verb, model, "to be", *template, "--max-tokens", 8, "--backend", "reference"),
            *(*options, "--json"),
        )
        return found.last_json["text"], found.err

    def expected(**options: Any) -> str:
        return loaded.generate(prompt, max_tokens=8, **options)

    text, said = written()
    assert text == expected(**STATED)
    assert f"sampling as the model's authors state it in {place(model)}: {IN_WORDS}\n" in said
    text, said = written("--temperature", 2, "--top-k", 0)
    assert text == expected(**{**STATED, "temperature": 2, "top_k": 0})
    assert "top_p 0.95, min_p 0.01, repetition_penalty 1.05\n" in said
    assert "temperature" not in said


def test_python_is_greedy_whatever_they_state(model: Path) -> None:
    loaded = from_pretrained(model, backend="reference")

    greedy = loaded.generate("to be", max_tokens=8)

    assert greedy == loaded.generate("to be", max_tokens=8, temperature=0.0)


def test_a_file_of_ours_is_as_written_and_goes_on_to_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, dataclasses.replace(random_bundle(), generation=GENERATION))

    FORMATS["gguf"].require_as_written(ModelFiles(path), load(path))
    save_model(tmp_path / "again", load(path))

    again = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert STATED.items() <= again.items()
    assert again["do_sample"] is True


def test_keys_are_those_that_the_gguf_library_makes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION))
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "qwen3")
    gguf.Metadata.load(None, tmp_path).set_gguf_meta_model(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = read_gguf(tmp_path / "theirs.gguf").metadata
    write_gguf(tmp_path / "ours.gguf", dataclasses.replace(random_bundle(), generation=GENERATION))
    ours = read_gguf(tmp_path / "ours.gguf").metadata

    found = {key: value for key, value in theirs.items() if key.startswith("general.sampling.")}

    assert len(found) == 4
    assert found.items() <= ours.items()
    # Its converter looks for this one by another name.
    assert read_sampling(theirs) == {
        "do_sample": True,
        **{name: value for name, value in STATED.items() if name != "repetition_penalty"},
    }


@pytest.mark.parametrize(
    "generation", [{}, {"do_sample": False, "temperature": 0.5}, {"top_p": None}], ids=str
)
def test_what_states_nothing_changes_nothing(
    run: Run, tmp_path: Path, generation: dict[str, object]
) -> None:
    save_model(tmp_path, dataclasses.replace(random_bundle(), generation=generation))

    result = run("generate", tmp_path, "to be", "--max-tokens", 8, "--json")

    expected = from_pretrained(tmp_path).generate("to be", max_tokens=8, temperature=0.7)
    assert result.last_json["text"] == expected
    assert "authors" not in result.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 0.5),
        ("top_p", 0),
        ("top_p", True),
        ("min_p", [1]),
        ("repetition_penalty", 1e9),
    ],
)
def test_a_statement_that_cannot_be_is_overlooked_with_a_warning(
    name: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = stated_options(
            {"do_sample": True, "top_k": 5, "top_p": 0.5, name: value}, where="x"
        )

    assert name not in found
    assert len(found) in (1, 2)
    assert f"x: {name}=" in caplog.text
    assert "overlooked" in caplog.text


def test_what_there_is_no_option_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    keys: dict[str, Any] = {
        "general.sampling.xtc_probability": 0.5,
        "general.sampling.mirostat": 0,
        "general.sampling.penalty_repeat": 1.1,
        "general.sampling.penalty_last_n": 64,
    }

    with caplog.at_level(logging.WARNING):
        found = read_sampling(keys)

    assert found == {"do_sample": True, "repetition_penalty": 1.1}
    assert "general.sampling.xtc_probability is 0.5, for which there is no option" in caplog.text
    assert "general.sampling.penalty_last_n is 64" in caplog.text
    assert "mirostat" not in caplog.text
