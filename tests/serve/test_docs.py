"""What docs/serving.md shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.lm import Model
from nanochat.serve.api.schema import ChatRequest, CompletionRequest
from tests.serve.here import Here
from tests.serve.processes import Asked, Process, ask

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
CURL = re.findall(r"^(curl .*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def at(server: Asked, text: str) -> str:
    assert "127.0.0.1:8000" in text
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_get_the_model_s_answer(server: Process, model: Model, block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", at(server, block)], capture_output=True, text=True, check=True
    )

    wanted = model.chat("fn main() {", max_tokens=40, temperature=0.7, seed=1)
    assert done.stdout.rstrip("\n") == wanted.rstrip("\n")


@pytest.mark.parametrize("command", CURL)
def test_commands_of_curl_stream(server: Process, tool_server: Here, command: str) -> None:
    # The document's model has a name that people may know.
    has_tools = '"qwen"' in command
    command = at(tool_server if has_tools else server, command.replace('"qwen"', '"hermes"'))

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)

    assert done.stdout.endswith("data: [DONE]\n\n")


def test_the_fields_of_tools_have_a_row_each() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)

    assert {name for name in ChatRequest.__struct_fields__ if "tool" in name} == {*rows}


def test_the_paths_that_are_named_are_there(server: Process) -> None:
    rows = re.findall(r"^\| `(.*?) \|", TEXT, re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"/[\w/{}.]*", row)]

    assert len(paths) > 10
    for path in paths:
        assert ask(server, "GET", path.replace("{id}", "nanochat-tiny")).status in (200, 405)


def test_the_fields_that_are_named_are_those_beyond_openai_s() -> None:
    (sentence,) = re.findall(
        r"^Fields beyond OpenAI's.*?thoughts\.", TEXT, re.MULTILINE | re.DOTALL
    )

    known = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert set(re.findall(r"`(\w+)`", sentence)) <= known
