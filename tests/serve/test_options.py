"""Options of a server that come as text mean what the flags of the same names mean."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.cli.serve import serve
from nanochat.errors import InputError
from nanochat.serve.options import made_options, serve_options


def test_values_are_read_from_text_and_what_is_passed_is_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOCHAT_SERVE_MAX_ROWS", "3")
    monkeypatch.setenv("NANOCHAT_SERVE_QUEUE", "5")
    monkeypatch.setenv("NANOCHAT_SERVE_THREADS", "2")
    monkeypatch.setenv("NANOCHAT_SERVE_PAGE", "")

    given = {"max_rows": "7", "kv_memory": "4GB", "allow_host": "a b", "json_log": "true"}
    options = serve_options({**given, "api_key_file": "keys"}, ignored=())

    settings = options.settings
    assert (settings.max_rows, settings.queue, settings.kv_memory) == (7, 5, 4 * 10**9)
    assert (settings.allow_host, settings.json_log, settings.page) == (("a", "b"), True, True)
    assert settings.api_key_file == Path("keys")
    assert options.threads == 2
    assert [model.names for model in options.models] == [("nanochat-tiny",)]


def test_names_are_those_of_the_command_s_flags() -> None:
    with pytest.raises(InputError) as error:
        serve_options({"nothing": 1}, ignored=())

    flags = {option.opts[0].removeprefix("--").replace("-", "_") for option in serve.params}
    known = str(error.value).partition("name one of ")[2].split(", ")
    assert {*known} == flags - {"config", "models"} | {"model"}
    # Those by which a file and the environment have them are no others.
    assert flags == {option.name for option in serve.params}


def test_defaults_are_those_of_the_command_s_flags() -> None:
    given = serve.make_context("serve", []).params
    del given["models"]

    assert made_options(given).settings == made_options({}).settings
    (flags,), (none,) = made_options(given).models, made_options({}).models
    assert isinstance(flags.load, functools.partial)
    assert isinstance(none.load, functools.partial)
    assert (flags.load.args, flags.load.keywords) == (none.load.args, none.load.keywords)


def test_a_number_of_threads_has_the_same_name_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("threads = 3\n")

    assert serve.make_context("serve", ["--config", str(path)]).params["threads"] == 3
    monkeypatch.setenv("NANOCHAT_SERVE_THREADS", "2")
    assert serve.make_context("serve", []).params["threads"] == 2
    assert serve.make_context("serve", ["--threads", "1"]).params["threads"] == 1


def test_a_file_has_values_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(
        'allow-host = ["a", "b"]\njson-log = true\nkv-memory = "4GB"\nmax-body = 500\n'
        'drain-delay = 3\napi-key-file = "keys"\ntables = "int8"\npage = false\n'
    )

    found = serve.make_context("serve", ["--config", str(path)]).params

    assert found["allow_host"] == ("a", "b")
    assert (found["json_log"], found["page"], found["tables"]) == (True, False, "int8")
    assert (found["kv_memory"], found["max_body"], found["drain_delay"]) == (4 * 10**9, 500, 3.0)
    assert found["api_key_file"] == Path("keys")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("json-log = 5", "json_log=5: Expected `bool`, got `int`"),
        ('json-log = "yes"', "json_log='yes': Expected `bool`, got `str`"),
        ("max-rows = 3.7", "max_rows=3.7: Expected `int`, got `float`"),
        ('max-rows = "3"', "max_rows='3': Expected `int`, got `str`"),
        ('allow-host = "a b"', "allow_host='a b': Expected `array`, got `str`"),
        ("api-key-file = 5", "api_key_file=5: Expected `str`, got `int`"),
        ("kv-memory = 1.5", "kv_memory=1.5: Expected `int`, got `float`"),
        ('kv-memory = "much"', "'much' is no size"),
        ('kv-cache = "int3"', "kv_cache='int3'"),
        ("model = 5", "there is no setting 'model'"),
    ],
)
def test_a_value_of_another_kind_in_a_file_is_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(line)

    with pytest.raises(InputError) as error:
        serve.make_context("serve", ["--config", str(path)])

    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_each_model_has_its_name_and_one_may_have_others() -> None:
    two = serve_options({"model": "a b"}, ignored=())
    one = serve_options({"model": "a", "served_name": "x y"}, ignored=())

    assert [model.names for model in two.models] == [("a",), ("b",)]
    assert [model.names for model in one.models] == [("x", "y")]


def test_what_another_program_decides_is_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = serve_options({"port": "1", "host": "0.0.0.0"}, ignored=("host", "port")).settings

    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert "host, port: without effect here" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modle": "x"}, "there is no option 'modle' (did you mean model?)"),
        ({"max_rows": "many"}, "max_rows='many'"),
        ({"kv_cache": "int3"}, "kv_cache='int3'"),
        ({"kv_memory": "much"}, "'much' is no size"),
        ({"model": "a b", "served_name": "x"}, "served_name is for one model"),
        ({"model": "a b a"}, "model 'a' is there twice: name it once"),
        ({"max_body": "9" * 400}, "is more than any machine has"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        serve_options(given, ignored=())

    assert message in str(error.value)


def test_a_server_imports_nothing_that_only_some_want() -> None:
    code = "import sys, nanochat.serve.run; print({'ray', 'opentelemetry'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
