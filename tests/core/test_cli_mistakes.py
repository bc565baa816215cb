"""Nothing that a user, a disk or a terminal does ends in a traceback."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import psutil
import pytest

from nanochat import cli
from nanochat.cli.output import write
from nanochat.cli.run import missing
from nanochat.errors import how_to_install
from tests.core.command_line import GREEDY, ROOT, Run, finish, start

MISTAKES = [
    (["bake"], 2, "there is no verb 'bake': choose from generate,"),
    (["generat"], 2, "there is no verb 'generat' (did you mean generate?)"),
    (["generate", "MODEL", "--spcial", "a"], 2, "Did you mean '--special'?"),
    (["generate", "MODEL", "a", "--prompt", "a"], 2, "PROMPT and --prompt are two ways"),
    (["chat", "MODEL", "a", "--message", "a"], 2, "MESSAGE and --message are two ways"),
    (["data", "bake"], 2, "there is no verb 'bake': choose from logits, prepare, show"),
    (["--loud"], 2, "No such option '--loud'"),
    (["generate"], 2, "there is no prompt: write it behind MODEL, or pass --prompt; see nanochat"),
    (["generate", "MODEL", "--prompt", ""], 2, "the prompt is empty"),
    (["generate", "MODEL", "--prompt", "\udcff"], 2, "lone surrogate"),
    (["generate", "MODEL", "--prompt", "a", "--temperature", "-1"], 2, "temperature=-1.0"),
    (["generate", "MODEL", "--prompt", "a", "--temperature", "nan"], 2, "temperature=nan"),
    (["generate", "MODEL", "--prompt", "a", "--temperature", "hot"], 2, "'hot' is not a valid"),
    (["generate", "MODEL", "--prompt", "a", "--top-p", "0"], 2, "top_p=0.0"),
    (["generate", "MODEL", "--prompt", "a", "--seed", "-1"], 2, "seed=-1"),
    (["generate", "MODEL", "--prompt", "a", "--stop", ""], 2, "stop holds an empty string"),
    (["generate", "MODEL", "--prompt", "a", "--max-tokens", "0"], 2, "--max-tokens"),
    (["generate", "MODEL", "--prompt", "a", "--max-tokens", "99"], 2, "max_tokens=62 or less"),
    (["generate", "MODEL", "--prompt", "a" * 99], 2, "leaves no room"),
    (["generate", "MODEL", "--prompt", "a", "--backend", "abacus"], 2, "'abacus' is not one of"),
    (["generate", "MODEL", "--prompt", "a", "--kv-cache", "int2"], 2, "'int2' is not one of"),
    (["chat", "MODEL", "--message", "a", "--kv-cache", "half"], 2, "'half' is not one of"),
    (["generate", "nanochat-tinny", "--prompt", "a"], 1, "did you mean nanochat-tiny"),
    (
        ["generate", "EMPTY", "--prompt", "a"],
        1,
        "holds no model, which is a config.json with tensors beside it, or a .gguf or .onnx",
    ),
    (["generate", "EMPTY/no.gguf", "--prompt", "a"], 1, "no such directory, .gguf or .onnx file"),
    (["generate", "BROKEN", "--prompt", "a"], 1, "not valid JSON"),
    (["generate", "IMPOSSIBLE", "--prompt", "a"], 1, "num_streams"),
    (["chat", "--json"], 2, "write a message behind MODEL"),
    (["chat", "MODEL", "--message", "a" * 99], 2, "leaves no room"),
    (["chat", "MODEL", "--message", ""], 2, "the message is empty"),
    (["models", "show", "nanochat-9b"], 1, "did you mean "),
    (["info"], 2, "Missing argument 'PRESET-OR-MODEL'"),
    (["info", "tiny", "--context", "9999"], 2, "context=9999"),
    (["info", "huge"], 1, "no model is named 'huge'"),
    (["info", "IMPOSSIBLE"], 1, "num_streams"),
    (["data", "prepare"], 2, "Missing"),
    (["data", "prepare", "EMPTY", "--out", "OUT"], 2, "either --vocab-size"),
    (["data", "prepare", "EMPTY", "--out", "OUT", "--vocab-size", "300"], 1, "matches no file"),
    (["data", "prepare", "MODEL", "--out", "OUT", "--vocab-size", "9"], 2, "vocab_size=263"),
    (
        ["data", "prepare", "MODEL", "--out", "OUT", "--vocab-size", "300", "--sample-bytes", "-5"],
        2,
        "sample_bytes=-5",
    ),
    (
        [
            "data",
            "prepare",
            "MODEL",
            "--out",
            "OUT",
            "--vocab-size",
            "300",
            "--max-file-bytes",
            "-1",
        ],
        2,
        "max_file_bytes=-1",
    ),
    (
        ["data", "prepare", "MODEL", "--out", "OUT", "--vocab-size", "300", "--shard-tokens", "0"],
        2,
        "shard_tokens=0",
    ),
    (
        ["data", "prepare", "MODEL", "--out", "OUT", "--vocab-size", "300", "--held-out", "1"],
        2,
        "held_out=1.0",
    ),
    (["data", "prepare", "MODEL", "--out", "MODEL", "--vocab-size", "300"], 2, "another path"),
    (["data", "show", "EMPTY"], 1, "data.json"),
    (["export"], 2, "Missing argument 'MODEL'; see nanochat export --help"),
    (["nanochat-export", "MODEL"], 2, "Missing option '--format'"),
    (["nanochat-export", "--format", "pdf", "MODEL"], 2, "'pdf' is not one of"),
    (
        ["nanochat-export", "--format", "gguf", "--target", "ort", "MODEL"],
        2,
        "--target is for onnx",
    ),
    (
        ["nanochat-export", "--format", "onnx", "--outtype", "f16", "MODEL"],
        2,
        "--outtype is for gguf, not for onnx",
    ),
    (
        ["nanochat-export", "--format", "gguf", "--runtime", "mlx-lm", "MODEL"],
        2,
        "choose auto, llama.cpp or nanochat",
    ),
    (
        ["nanochat-export", "--format", "gguf", "--runtime", "llama.cpp", "MODEL"],
        2,
        "num_streams=2: it has one residual stream",
    ),
    (["nanochat-export", "--format", "gguf", "--unroll-loop", "MODEL"], 2, "loop"),
    (["nanochat-export", "--format", "gguf"], 2, "Missing argument 'MODEL'"),
    (["nanochat-export", "--format", "gguf", "--out", "FILE/x.gguf", "MODEL"], 1, "cannot write"),
    (["nanochat-export", "--format", "gguf", "--out", "OUT", "MODEL"], 2, "not end in .gguf"),
    (["nanochat-export", "--format", "hf", "--out", "FILE", "MODEL"], 2, "is a file"),
    (
        ["nanochat-export", "--format", "gguf", "--upload-repo", "mine", "MODEL"],
        2,
        "'mine' is no repository of the Hub",
    ),
    (
        ["models", "verify", "EMPTY"],
        1,
        "holds no model, which is a config.json with tensors beside it, or a .gguf or .onnx",
    ),
    (["models", "verify", "FILE"], 1, "is a file, but no model by itself: pass its folder"),
    (
        ["nanochat-export", "--format", "gguf", "EMPTY"],
        1,
        "holds no model, which is a config.json with tensors beside it, or a .gguf or .onnx",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), MISTAKES, ids=[" ".join(m[0])[:80] for m in MISTAKES]
)
def test_a_mistake_is_one_line_and_an_exit_code(
    run: Run, directory: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    places = {name: tmp_path / name for name in ("EMPTY", "BROKEN", "IMPOSSIBLE", "OUT", "FILE")}
    for name in ("EMPTY", "BROKEN", "IMPOSSIBLE"):
        places[name].mkdir()
    places["FILE"].touch()
    (places["BROKEN"] / "config.json").write_text("{")
    config = json.loads((directory / "config.json").read_text())
    (places["IMPOSSIBLE"] / "config.json").write_text(json.dumps({**config, "num_streams": 3}))
    for name, path in {**places, "MODEL": directory}.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    program = arguments.pop(0) if arguments[0] == "nanochat-export" else "nanochat"

    result = run(*arguments, program=program)

    last = result.err.splitlines()[-1]
    assert (result.code, result.out) == (code, "")
    assert last.startswith("error: ")
    assert message in last


def test_standard_input_that_is_no_text_is_a_mistake(run: Run, directory: Path) -> None:
    result = run("generate", directory, "--prompt", "-", stdin=b"a\xff")

    assert (result.code, result.err) == (
        2,
        "error: byte 1 of standard input is not UTF-8: convert the text\n",
    )


def test_a_log_level_that_does_not_exist_is_a_mistake(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_LOG", "loud")

    result = run("models", "list")

    assert (result.code, result.out) == (2, "")
    assert result.err == "error: NANOCHAT_LOG='loud': choose one of debug, info, warning, error\n"


def test_the_log_can_be_silenced(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_LOG", "error")

    assert "runs on" not in run("generate", directory, "--prompt", "a", *GREEDY).err


def test_a_verb_that_is_not_installed_leaves_the_others_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli._VERBS, "train", ("nanochat.cli.absent", "train", "Train a model."))

    assert run("--help").code == run("models", "list").code == 0
    assert "train cannot run, because nanochat.cli.absent is not installed" in run("train").err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device", "out.bin"), 1, "No space left on device (out.bin)"),
        (MemoryError(), 1, "out of memory"),
        (ModuleNotFoundError(name="onnxruntime"), 1, how_to_install("onnx")),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["disk", "memory", "package", "interrupt"],
)
def test_trouble_outside_of_the_program_has_no_traceback(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(cli._VERBS, "fail", (__name__, "fail", "Fail."))
    monkeypatch.setitem(sys.modules[__name__].__dict__, "fail", click.command("fail")(fail))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])

    result = run("fail")

    assert result.code == code
    assert line in result.err
    assert "Traceback" not in result.err


def test_an_interrupt_keeps_what_was_generated_and_ends_with_130(large_context: Path) -> None:
    process = start("generate", large_context, "--prompt", "a", "--max-tokens", 16_000, *GREEDY)
    assert process.stdout is not None
    first = process.stdout.read(1)

    process.send_signal(signal.SIGINT)
    result = finish(process)

    assert first
    assert result.code == 130
    assert result.err.endswith("interrupted)\n")
    assert "Traceback" not in result.err


def test_an_interrupt_ends_the_answer_but_not_the_conversation(large_context: Path) -> None:
    process = start("chat", large_context, "--max-tokens", 12_000, *GREEDY)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    process.stdout.read(1)

    process.send_signal(signal.SIGINT)
    process.stdin.write(b"/exit\n")
    result = finish(process)

    assert (result.code, result.out[-1:]) == (0, "\n")
    assert "Traceback" not in result.err


def test_an_interrupt_ends_a_json_object_properly(large_context: Path) -> None:
    options = ("--prompt", "a", "--max-tokens", 16_000, *GREEDY, "--json")
    process = start("generate", large_context, *options)
    assert process.stderr is not None
    while b"runs on" not in process.stderr.readline():
        pass
    # Nothing is printed before the end; a token takes the processor some milliseconds.
    used = psutil.Process(process.pid).cpu_times
    enough = used().user + 0.3
    while process.poll() is None and used().user < enough:
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)
    result = finish(process)

    assert result.code == 130
    assert result.last_json["finish_reason"] == "interrupted"
    assert result.last_json["text"]


def test_a_reader_that_goes_away_is_no_error(large_context: Path) -> None:
    process = start("generate", large_context, "--prompt", "a", "--max-tokens", 16_000, *GREEDY)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)

    process.stdout.close()
    with process:
        err = process.stderr.read().decode()

    assert process.returncode == 141
    assert "error" not in err
    assert "Traceback" not in err


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark(polite: Path) -> None:
    options = ("--prompt", "ö", "--max-tokens", 4, *GREEDY, "--json")

    result = finish(start("generate", polite, *options, PYTHONIOENCODING="ascii"))

    assert result.code == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_obeys_no_control_character_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())

    write("a\x1b[2J\tb\r\n\x9b")

    assert isinstance(sys.stdout, Terminal)
    assert sys.stdout.getvalue() == "a�[2J\tb�\n�"


CLOSED = "error: standard output is closed, so the result is lost"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX closes the streams")
@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("generate {model} --prompt a >&-", 1, "", CLOSED),
        ("generate {model} --prompt a --json >&-", 1, "", CLOSED),
        ("models list >&-", 1, "", CLOSED),
        ("--help >&-", 1, "", CLOSED),
        ("models list >/dev/full", 1, "", "error: No space left on device"),
        ("models list 2>&-", 0, "nanochat-tiny", ""),
        ("generate {model} --prompt a 2>&-", 0, "\n", ""),
        ("bake 2>&-", 2, "", ""),
        ("generate {model} --prompt - <&-", 2, "", "error: standard input is closed: pipe"),
        ("chat {model} <&-", 2, "", "error: standard input is closed: pipe"),
        ("chat {model} --template - --message a <&-", 2, "", "error: standard input is closed"),
        ("generate {model} --prompt a <&- >&- 2>&-", 1, "", ""),
        ("info tiny <&-", 0, "parameters", ""),
    ],
)
def test_a_closed_stream_is_one_line_or_nothing(
    command: str, code: int, out: str, err: str, polite: Path
) -> None:
    words = command.format(model=f"'{polite}' --max-tokens 3 {' '.join(GREEDY)}")
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m nanochat {words}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    errors = [line for line in done.stderr.splitlines() if "runs on reference" not in line]
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert out in done.stdout
    # What chat says first is no error.
    assert "".join(errors[-1:]).startswith(err) if err else len(errors) < 2


def test_all_missing_packages_of_an_extra_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(missing.__globals__, "find_spec", lambda _: None)
    monkeypatch.setattr("sys.platform", "linux")

    assert missing("onnx") == (
        f"the packages onnx and onnxruntime must be installed: pip install -e '{ROOT}[onnx]'"
    )
    assert (
        "GPUs of several GB; where there is none, first pip install torch --index-url"
        in missing("torch")
    )
    monkeypatch.setitem(missing.__globals__, "find_spec", lambda _: True)
    assert missing("mlx").startswith("the package mlx must be installed: pip install")


def test_an_installed_package_is_named_for_the_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("nanochat.errors.__file__", str(tmp_path / "nanochat" / "errors.py"))

    assert how_to_install("mlx") == "pip install 'nanochat-ternary[mlx]'"
