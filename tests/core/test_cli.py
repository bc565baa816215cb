"""The verbs do their work: results on one stream, everything else on the other."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from nanochat import backends, cli, memory
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.backends.reference.state import ReferenceState
from nanochat.cli import export, generate
from nanochat.cli.output import format_count, print_table
from nanochat.cost import cost
from nanochat.generation.options import GenerationOptions, read_options
from nanochat.ops import Slot
from nanochat.presets import preset
from nanochat.rust.toolchain import find_toolchain
from nanochat.shapes import num_parameters
from tests.core.command_line import GREEDY, ROOT, Run
from tests.parity.random_models import random_model, random_tokenizer

# Generate.


def test_generate_prints_what_follows_the_prompt_and_nothing_else(
    run: Run, directory: Path
) -> None:
    result = run("generate", directory, "--prompt", "to be", "--max-tokens", 8, *GREEDY)

    assert (result.code, result.out) == (0, random_model().generate("to be", max_tokens=8) + "\n")


def test_generate_says_on_standard_error_what_runs_and_how_fast(run: Run, directory: Path) -> None:
    result = run("generate", directory, "--prompt", "to be", "--max-tokens", 8, *GREEDY)

    assert "runs on reference (cpu): asked for" in result.err
    assert "8 tokens, the first after" in result.err


def test_generate_reads_the_prompt_from_standard_input(run: Run, directory: Path) -> None:
    options = ("--max-tokens", 8, *GREEDY)

    piped = run("generate", directory, "--prompt", "-", *options, stdin="wörld".encode())

    assert piped.out == run("generate", directory, "--prompt", "wörld", *options).out


def test_generate_prints_one_json_object(run: Run, directory: Path) -> None:
    result = run("generate", directory, "--prompt", "to be", "--max-tokens", 8, *GREEDY, "--json")

    expected = {
        "prompt": "to be",
        "text": random_model().generate("to be", max_tokens=8),
        "finish_reason": "length",
        "tokens": 8,
    }
    assert result.out.count("\n") == 1
    assert expected.items() <= result.last_json.items()


def test_a_prompt_and_a_message_may_stand_behind_the_model(run: Run, polite: Path) -> None:
    prompt, message = ("--max-tokens", 8, "--json", *GREEDY), ("--json", *GREEDY)

    for verb, flag, options in (("generate", "--prompt", prompt), ("chat", "--message", message)):
        texts = [
            run(verb, polite, *words, *options).last_json for words in (("hello",), (flag, "hello"))
        ]
        assert texts[0]["text"] == texts[1]["text"]
        assert texts[0]["prompt_tokens"] == texts[1]["prompt_tokens"]


@pytest.mark.parametrize("words", [["-h"], ["models", "-h"], ["generate", "-h"], ["export", "-h"]])
def test_help_has_a_short_name_and_whole_sentences(run: Run, words: list[str]) -> None:
    result = run(*words)

    assert result.out == run(*words[:-1], "--help").out
    assert "..." not in result.out.partition("Examples")[0].replace("[ARGUMENTS]...", "").replace(
        "MLX ...", ""
    )
    assert "Commands:" not in result.out


def test_both_programs_tell_their_version(run: Run) -> None:
    assert (
        run("--version").out.split()[1]
        == run("--version", program="nanochat-export").out.split()[1]
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nanochat ge", "plain,generate"),
        ("nanochat models pu", "plain,pull\nplain,push"),
        ("nanochat generate nanochat-t", "plain,nanochat-tiny\nfile,nanochat-t"),
        ("nanochat generate nanochat-tiny --temp", "plain,--temperature"),
        ("nanochat-export --form", "plain,--format"),
    ],
)
def test_shells_complete_verbs_models_and_options(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: str, found: str
) -> None:
    program = line.split()[0]
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    monkeypatch.setenv(variable, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))

    assert run(program=program).out.strip() == found

    monkeypatch.setenv(variable, "bash_source")
    done = subprocess.run(
        ["bash", "-c", "source /dev/stdin && complete -p"],
        input=run(program=program).out,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith(f" {program}")


def test_a_model_that_was_not_trained_to_chat_says_so_and_what_it_can(run: Run) -> None:
    result = run("chat", "nanochat-tiny", "Hi", "--max-tokens", 2, *GREEDY)

    assert (
        "nanochat-tiny was not trained to chat, as its card says: it continues texts. Try: nanochat generate "
        "nanochat-tiny 'impl fmt::Display for Point {'"
    ) in result.err


def test_info_says_the_shape_and_which_runtimes_take_it(run: Run) -> None:
    tiny, plain = (run("info", name).out for name in ("tiny", "tiny-plain"))

    assert re.search(r"^layers +6$", tiny, re.MULTILINE)
    assert re.search(r"^heads +4 of 64, 2 for keys and values$", tiny, re.MULTILINE)
    assert re.search(r"^runs in stock llama\.cpp +no: num_streams=4", tiny, re.MULTILINE)
    obstacles = run("info", "tiny-plain", "--json").last_json["obstacles"]
    assert obstacles == dict.fromkeys(("llama.cpp", "mlx-lm", "transformers"), "")
    assert plain.count(" yes\n") == 3


def test_what_is_not_published_says_how_to_train_it_in_words(run: Run) -> None:
    listed, shown = run("models", "list").out, run("models", "show", "nanochat-1b").out

    assert "none yet: nanochat train --preset nano-1b" in listed
    assert re.search(r"^name +nano-1b$", shown, re.MULTILINE)
    assert re.search(r"^aliases +nanochat-1b$", shown, re.MULTILINE)
    assert re.search(r"^repo +none$", shown, re.MULTILINE)
    assert re.search(r"^cached +no$", shown, re.MULTILINE)
    assert "None" not in shown


def test_a_prompt_that_was_read_before_is_read_from_a_file(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    command = ("generate", directory, "to be, or", "--max-tokens", 6, *GREEDY)
    path = tmp_path / "prompt.npz"

    plain, first = run(*command), run(*command, "--prompt-cache", path)
    second = run(*command, "--prompt-cache", path)

    assert plain.out == first.out == second.out
    assert f"wrote {path}, " in first.err
    assert "wrote" not in second.err
    assert run("generate", directory, "wörld", "--prompt-cache", path, *GREEDY).code == 0


def test_a_prompt_that_does_not_fit_is_not_read_for_a_cache(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompt.npz"

    result = run("generate", directory, "7" * 99, "--prompt-cache", path, *GREEDY)

    assert "leaves no room for an answer" in result.err
    assert not path.exists()


def test_names_of_special_tokens_are_read_on_request(run: Run, directory: Path) -> None:
    command = ("generate", directory, "--prompt", "<|user|>to be", "--max-tokens", 2, "--json")

    plain, special = (run(*command, *more).last_json for more in ((), ("--special",)))

    assert (plain["prompt_tokens"], special["prompt_tokens"]) == (12, 5)


def test_a_chat_template_may_be_given(run: Run, polite: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].content }}")
    command = ("chat", polite, "--message", "hello", *GREEDY, "--json")

    own = run(*command, "--template", template).last_json
    piped = run(*command, "--template", "-", stdin=template.read_bytes()).last_json

    assert own["prompt_tokens"] == piped["prompt_tokens"] == 5
    assert run(*command).last_json["prompt_tokens"] == 8
    assert own["text"] == piped["text"]
    missing = run(*command, "--template", tmp_path / "none")
    assert (missing.code, missing.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("verb", [("generate", "--prompt"), ("chat", "--message")], ids="-".join)
def test_keys_and_values_are_kept_as_asked(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, str]
) -> None:
    storages: list[str] = []

    def new_state(
        _self: ReferenceOps,
        slots: Sequence[Slot],
        *,
        rows: int,
        capacity: int,
        pages: int | None = None,
    ) -> ReferenceState:
        storages.extend(slot.storage for slot in slots)
        return ReferenceState(slots, rows=rows, capacity=capacity, pages=pages)

    monkeypatch.setattr(ReferenceOps, "new_state", new_state)

    run(verb[0], directory, verb[1], "a", "--backend", "reference", "--kv-cache", "int8")

    assert set(storages) == {"int8"}


def test_the_same_seed_prints_the_same_text_and_another_seed_another(
    run: Run, directory: Path
) -> None:
    first, again, other = (
        run("generate", directory, "--prompt", "a", "--backend", "reference", "--seed", seed).out
        for seed in (1, 1, 2)
    )

    assert first == again != other


def test_a_stop_string_ends_the_text(run: Run, polite: Path) -> None:
    result = run("chat", polite, "--message", "hi", "--stop", "q", "--stop", "yz", *GREEDY)

    assert result.out == "wx\n"


# Chat.


def test_chat_answers_one_message(run: Run, polite: Path) -> None:
    result = run("chat", polite, "--message", "hello", *GREEDY)

    assert (result.code, result.out) == (0, "wxyz\n")


def test_chat_prints_one_json_object(run: Run, polite: Path) -> None:
    result = run("chat", polite, "--message", "hello", "--system", "be brief", *GREEDY, "--json")

    assert {"text": "wxyz", "finish_reason": "stop"}.items() <= result.last_json.items()


def test_a_conversation_has_an_answer_for_every_line_until_the_end_of_the_input(
    run: Run, polite: Path
) -> None:
    result = run("chat", polite, *GREEDY, stdin=b"hello\n\nhow are you?\n")

    assert (result.code, result.out) == (0, "wxyz\nwxyz\n")


def test_a_conversation_knows_its_commands(run: Run, polite: Path) -> None:
    result = run("chat", polite, *GREEDY, stdin=b"/help\nhi\n/clear\n/exit\nhi\n")

    assert result.out == "wxyz\n"
    assert "/clear forgets the conversation" in result.err
    assert "(forgotten)" in result.err


def test_an_unknown_command_is_no_question(run: Run, polite: Path) -> None:
    result = run("chat", polite, *GREEDY, stdin=b"/claer\n")

    assert result.out == ""
    assert "there is no command /claer" in result.err


@pytest.mark.parametrize("line", [b"// why?", b"/etc/fstab", b"/ is what?", b"/* c */"])
def test_a_question_may_begin_with_a_slash(run: Run, polite: Path, line: bytes) -> None:
    result = run("chat", polite, *GREEDY, stdin=line + b"\n")

    assert result.out == "wxyz\n"


def test_a_conversation_that_fills_the_context_forgets_its_oldest_turns(
    run: Run, polite: Path
) -> None:
    result = run("chat", polite, "--max-tokens", 6, *GREEDY, stdin=b"to be or not to be\n" * 6)

    assert result.out == "wxyz\n" * 6
    assert "the oldest question and its answer are forgotten" in result.err


def test_a_message_that_can_never_fit_leaves_the_conversation_running(
    run: Run, polite: Path
) -> None:
    result = run("chat", polite, *GREEDY, stdin=b"7" * 99 + b"\nhi\n")

    assert (result.code, result.out) == (0, "wxyz\n")
    assert "error: a prompt of" in result.err


# Data, models, info, doctor.


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index}.txt").write_text(f"{index}: to be or not to be\n" * 20)
    return folder


def test_data_is_prepared_and_shown(run: Run, texts: Path, tmp_path: Path) -> None:
    options = ("--vocab-size", 280, "--held-out", 0.2)

    made = run("data", "prepare", texts, "--out", tmp_path / "data", *options, "--json")
    shown = run("data", "show", tmp_path / "data", "--verify", "--json")

    assert (made.code, shown.code) == (0, 0)
    assert made.last_json == shown.last_json
    assert made.last_json["vocab_size"] == 280


def test_data_may_be_prepared_with_the_tokenizer_of_a_model(
    run: Run, texts: Path, tmp_path: Path, directory: Path
) -> None:
    options = ("--tokenizer", directory, "--held-out", 0.2)

    result = run("data", "prepare", texts, "--out", tmp_path / "data", *options)

    assert f"vocabulary  {random_tokenizer().vocab_size} tokens" in result.out


def test_models_are_listed_and_shown(run: Run) -> None:
    listed = run("models", "list", "--json").last_json["models"]
    shown = run("models", "show", "nanochat-tiny", "--json").last_json

    assert isinstance(listed, list)
    shown.pop("expected")
    assert shown in listed
    assert "nanochat-tiny" in run("models", "list").out
    assert "included" in run("models", "show", "nanochat-tiny").out


def test_info_of_a_preset_and_of_a_model(run: Run, directory: Path) -> None:
    description = random_model().describe()

    of_preset = run("info", "tiny", "--json").last_json
    of_model = run("info", directory, "--json").last_json

    parameters = num_parameters(preset("tiny"))
    assert of_preset["parameters"] == parameters
    assert {key: of_model[key] for key in ("parameters", "bytes", "tensors")} == {
        key: description[key] for key in ("parameters", "bytes", "tensors")
    }
    assert format_count(parameters) in run("info", "tiny").out


def test_info_of_a_public_model_is_that_of_its_shape(run: Run) -> None:
    told = run("info", "bonsai-2-27b", "--json").last_json

    assert told["parameters"] == pytest.approx(26.9e9, rel=0.01)
    assert told["sampling"] == {"temperature": 0.7, "top_k": 20, "top_p": 0.95}


def test_info_says_what_a_token_costs(run: Run) -> None:
    config = preset("tiny")

    few, many = (
        run("info", "tiny", "--json", *options).last_json["cost"]
        for options in (("--context", 1), ())
    )

    assert few == dataclasses.asdict(cost(config, context=1))
    assert many == dataclasses.asdict(cost(config, context=config.context_length))


@pytest.mark.usefixtures("soon_measured")
def test_doctor_says_what_auto_chooses_and_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BACKEND", "reference")

    result = run("doctor", "--json")

    assert result.code == 0
    assert result.last_json["auto"] == {
        "backend": "reference",
        "reason": "NANOCHAT_BACKEND is set",
    }
    assert "auto is reference: NANOCHAT_BACKEND is set" in run("doctor").out


@pytest.mark.usefixtures("soon_measured")
@pytest.mark.skipif(backends.unavailable("numba") is not None, reason="needs numba")
def test_doctor_says_how_numba_would_run(run: Run) -> None:
    shown, found = run("doctor").out, run("doctor", "--json").last_json["numba"]

    assert isinstance(found, dict)
    assert found["isa"] in found["available"]
    assert found["threads"] >= 1
    assert found["call_microseconds"] >= 0
    assert f"numba kernels     {found['isa']}" in shown
    assert f"compiled code     in {found['kernels']}" in shown


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where measured products are kept, instead of the user's folder."""
    compilation = pytest.importorskip("nanochat.backends.numba.runtime.compilation")
    monkeypatch.setattr(compilation, "folder", lambda _kernel: tmp_path)
    monkeypatch.delenv("NANOCHAT_TUNE", raising=False)
    return tmp_path


def test_tune_measures_all_shapes_of_a_preset_and_keeps_the_answers(run: Run, kept: Path) -> None:
    options = ("--tokens", 1, "--tokens", 100, "--threads", 1)

    made = run("tune", "tiny", *options, "--json").last_json
    shown = run("tune", "--show", "--json").last_json

    assert made == shown
    assert made["file"] == str(next(kept.iterdir()))
    choices = made["choices"]
    assert isinstance(choices, list)
    assert {(c["shape"]["rows"], c["shape"]["columns"], c["tokens"]) for c in choices} == {
        (rows, columns, tokens)
        for rows, columns in ((256, 256), (128, 256), (768, 256), (256, 768), (4096, 256))
        for tokens in (1, 64)
    }


def test_tune_prints_a_table_and_forgets_when_told(run: Run, kept: Path, directory: Path) -> None:
    table = run("tune", directory, "--tokens", 2).out
    cleared = run("tune", "--clear")

    assert table.startswith("weights  rows  columns  tokens  threads  chosen")
    assert "together" in table
    assert (cleared.code, cleared.err, list(kept.iterdir())) == (0, "1 file removed\n", [])
    assert run("tune", "--show").out == "nothing has been measured yet\n"


@pytest.mark.parametrize(
    ("arguments", "switch", "message"),
    [
        (("--show", "--clear"), "on", "choose one of them"),
        (("tiny",), "off", "NANOCHAT_TUNE=off: what is measured would not be used"),
        (("tiny",), "fast", "NANOCHAT_TUNE='fast': choose on"),
        (("tiny", "--tokens", 0), "on", "--tokens"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("kept")
def test_tune_refuses_what_makes_no_sense(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    switch: str,
    message: str,
) -> None:
    monkeypatch.setenv("NANOCHAT_TUNE", switch)

    result = run("tune", *arguments)

    assert result.code == 2
    assert message in result.err


@pytest.mark.usefixtures("kept", "soon_measured")
def test_show_tells_speeds_by_what_the_doctor_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bandwidth = pytest.importorskip("nanochat.backends.numba.tuning.bandwidth")
    monkeypatch.setattr(memory, "free_bytes", lambda: 8 * 10**9)
    measured = run("doctor", "--json").last_json["bandwidth"]
    monkeypatch.setattr(bandwidth, "measure", lambda: pytest.fail("it was measured again"))

    shown = run("models", "show", "ternary-bonsai-8b", "--backend", "numba", "--json")

    told = shown.last_json["expected"]
    assert isinstance(told, dict)
    assert measured is not None
    assert told["bandwidth"] == measured
    assert all(row["tokens_per_second"] > 0 for row in told["memory"])


@pytest.mark.usefixtures("soon_measured")
def test_doctor_says_which_sandboxes_hold(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("doctor", "--json").last_json
    monkeypatch.setenv("PATH", "/nowhere")
    find_toolchain.cache_clear()

    shown = run("doctor").out

    assert found["sandboxes"] == [
        {"name": "bubblewrap", "ready": True, "detail": "bubblewrap, landlock, seccomp"},
        {"name": "landlock", "ready": True, "detail": "landlock, seccomp"},
    ]
    assert "there is no bwrap on the PATH: apt install bubblewrap" in shown
    assert "landlock, seccomp" in shown
    assert re.search(r"'name': 'rustc', 'ready': True, 'detail': 'rustc 1", str(found["rustc"]))
    assert "there is no rustc on the PATH" in shown


def test_doctor_fails_if_nothing_can_be_chosen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BACKEND", "abacus")

    result = run("doctor")

    assert result.code == 1
    assert "auto is no backend: unknown backend 'abacus'" in result.out


# Export.


@pytest.mark.parametrize(
    ("kind", "name"), [("gguf", "x.gguf"), ("onnx", "x"), ("mlx", "x"), ("hf", "x")]
)
def test_an_export_is_verified_and_names_every_format(
    run: Run, directory: Path, tmp_path: Path, kind: str, name: str
) -> None:
    out = tmp_path / name

    result = run("--format", kind, "--out", out, directory, "--json", program="nanochat-export")

    report = result.last_json
    assert (result.code, report["path"]) == (0, str(out))
    assert report["digests"]
    # What this package runs itself is proven by digests.
    parity = report["parity"]
    assert (parity is None) == (report["written_as"] == "nanochat")
    assert parity is None or (isinstance(parity, dict) and parity["ok"])
    assert isinstance(report["tensors"], list)
    assert {tensor["name"] for tensor in report["tensors"]} >= {"embedding", "layers.mixer.q"}


def test_an_export_prints_a_table_and_the_parity(
    run: Run, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run("--format", "gguf", directory, program="nanochat-export")

    assert (tmp_path / "random.gguf").exists()
    assert "TQ2_0" in result.out
    assert "tensors, configuration and tokenizer as they were" in result.out
    assert "parity: proven by that, as this package runs it" in result.out
    assert json.loads((tmp_path / "random.gguf.parity.json").read_text())["ok"]


@pytest.mark.parametrize("name", ["b1.58-2B", "a@b", "sp ace é"])
def test_an_export_is_named_after_the_whole_directory(
    run: Run, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(directory, tmp_path / name)

    result = run("--format", "gguf", "--no-verify", f"{name}/", program="nanochat-export")

    assert (tmp_path / f"{name}.gguf").exists()
    # No bar where nobody looks at it.
    assert result.err.startswith(f"wrote {name}.gguf (nanochat), ")


def test_a_model_of_the_catalog_gives_its_name_and_a_file_its_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    run("--format", "gguf", "--no-verify", "nanochat-tiny", program="nanochat-export")
    run("--format", "hf", "--no-verify", "nanochat-tiny.gguf", program="nanochat-export")

    assert {path.name for path in tmp_path.iterdir()} == {"nanochat-tiny.gguf", "nanochat-tiny-hf"}


def test_an_export_may_go_unchecked_but_says_so(run: Run, directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"

    result = run(
        "--format", "gguf", "--no-verify", "--out", out, directory, program="nanochat-export"
    )

    assert (result.code, result.out.splitlines()[-1]) == (0, "parity: not checked")


def test_an_exported_file_generates_the_same_text(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    run("--format", "gguf", "--no-verify", "--out", out, directory, program="nanochat-export")
    options = ("--prompt", "to be", "--max-tokens", 8, *GREEDY)

    result = run("generate", out, *options)

    assert result.out == run("generate", directory, *options).out


def test_a_model_is_verified(run: Run, directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    run("--format", "gguf", "--no-verify", "--out", out, directory, program="nanochat-export")

    result = run("models", "verify", out, "--backend", "reference")
    report = run("models", "verify", out, "--backend", "reference", "--json").last_json

    assert result.code == 0
    assert "agrees on reference" in result.out
    assert (report["backend"], report["golden"]) == ("reference", pytest.approx(0, abs=1e-5))


def test_a_model_of_which_nothing_says_what_it_computes_exits_3(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(directory, folder)
    (folder / "nanochat.json").unlink()

    result = run("models", "verify", folder)

    assert result.code == 3
    assert "nothing proven" in result.err


# Help.


def commands(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    """A command and all below it."""
    found = [(name, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for verb in command.list_commands(context):
            child = command.get_command(context, verb)
            assert child is not None
            found += commands(child, f"{name} {verb}")
    return found


COMMANDS = [*commands(cli._nanochat, "nanochat"), *commands(export.export, "nanochat-export")]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_says_what_it_is_for(name: str, command: click.Command) -> None:
    options = [p for p in command.params if isinstance(p, click.Option)]

    assert command.help, name
    assert [option.name for option in options if not option.help] == []
    assert all("_" not in text for option in options for text in option.opts)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["data"], ["generate", "--help"]], ids=str)
def test_help_is_a_result(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: nanochat")


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out.startswith("nanochat 0.")


def test_help_starts_at_once_and_loads_no_framework() -> None:
    program = (
        "import sys, time; start = time.process_time()\n"
        "from nanochat.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(time.process_time() - start, 'numpy' in sys.modules)"
    )

    answers = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()[-2:]
        for _ in range(5)
    ]

    assert min(float(seconds) for seconds, _ in answers) < 0.3
    assert {loaded for _, loaded in answers} == {"False"}


def test_a_table_has_numbers_on_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("a", 5, "1.5 MB"), ("bcd", 1000, "20 kB")], header=("name", "count", "size"))

    assert capsys.readouterr().out == (
        "name  count    size\n"
        "a         5  1.5 MB\n"
        "bcd    1000   20 kB\n"
    )  # fmt: skip


def test_options_have_the_words_and_defaults_of_python_but_for_the_temperature() -> None:
    wanted = read_options({})
    python = {**vars(wanted.sampling), "seed": wanted.seed}
    for verb in (generate.generate, generate.chat):
        with click.Context(verb) as context:
            given = {option.name: option.get_default(context) for option in verb.params}
            helps = {option.name: str(getattr(option, "help", "")) for option in verb.params}
        shared = given.keys() & python.keys() & GenerationOptions.__annotations__.keys()
        # What a model's authors may state.
        stated = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}

        assert {name for name in shared if given[name] != python[name]} == stated
        for name in stated:
            usual = 0.7 if name == "temperature" else python[name]
            assert helps[name].endswith(f"[default: what the model's authors state, or {usual:g}]")
    text = (ROOT / "docs" / "run.md").read_text(encoding="utf-8")
    assert "The command line samples at temperature 0.7; Python is greedy" in " ".join(text.split())
