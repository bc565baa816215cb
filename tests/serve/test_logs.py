"""What clients send stands in the log as theirs, and makes no line of its own."""

import json
import logging

import pytest

from nanochat.serve.settings import Settings
from tests.serve.here import asked_here
from tests.serve.processes import post, running


@pytest.mark.parametrize("json_log", [False, True], ids=["words", "json"])
def test_a_path_is_one_word_of_a_line(json_log: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nanochat.serve")

    asked_here(Settings(json_log=json_log), "GET", "/x%0aGET%20/y%20200%1b[2J" + "z" * 9000)

    (line,) = [record.getMessage() for record in caplog.records]
    path = json.loads(line)["path"] if json_log else line.split(" ")[1]
    assert path.startswith("/x%0AGET%20/y%20200%1B%5B2Jzzz")
    assert len(path) == 200
    if not json_log:
        assert line.split(" ")[2] == "404"


def test_names_of_unknown_fields_are_few_short_and_without_controls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "nanochat.serve")
    names = ["a\nb", "secret words " * 20, *(f"z{number}" for number in range(100))]

    asked_here(
        Settings(),
        "POST",
        "/v1/completions",
        {"model": "none", "prompt": "x", **dict.fromkeys(names, 1)},
    )

    line = caplog.records[0].getMessage()
    assert line.startswith("/v1/completions: fields 'a\\nb', 'secret words ")
    assert line.endswith(" and 97 more are not known")
    assert len(line) < 300


def test_what_is_no_state_of_a_trace_is_not_repeated() -> None:
    address = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with running("nanochat-tiny", "--backend", "reference", **address) as server:
        answer = post(
            server,
            "/v1/completions",
            {"prompt": "fn", "max_tokens": 1},
            traceparent=parent,
            tracestate="secret words",
        )

        assert answer.status == 200
    assert "secret words" not in server.said
