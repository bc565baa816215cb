"""Options of a server that come as text mean what the flags of the same names mean."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.cli.serve import serve
from nanochat.errors import InputError
from nanochat.serve.options import serve_options


def test_values_are_read_from_text_and_what_is_passed_is_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOCHAT_SERVE_MAX_ROWS", "3")
    monkeypatch.setenv("NANOCHAT_SERVE_QUEUE", "5")
    monkeypatch.setenv("NANOCHAT_SERVE_NUM_THREADS", "2")
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
