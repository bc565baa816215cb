"""Other people's programs that speak OpenAI's API are served: LangChain, and the command llm."""

import functools
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from nanochat.lm import Model
from tests.core.test_call_grammar import hermes
from tests.serve.here import Here
from tests.serve.processes import Process
from tests.serve.tools import say

TEXT = "fn main() {"
NO_KEY = SecretStr("none")


def test_langchain_chats_and_streams(server: Process, model: Model) -> None:
    chat = ChatOpenAI(
        model="nanochat-tiny",
        base_url=server.url,
        api_key=NO_KEY,
        temperature=0,
        max_completion_tokens=12,
        stream_usage=True,
    )
    wanted = model.chat(TEXT, max_tokens=12)

    whole = chat.invoke(TEXT)
    parts = list(chat.stream(TEXT))

    assert whole.content == wanted
    assert "".join(str(part.content) for part in parts) == wanted
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] <= 12


def test_langchain_calls_tools(tool_server: Here, talker: Model) -> None:
    def now(city: str) -> str:
        """Tell the time."""
        return city

    say(talker, "Yes.\n" + hermes("now", '{"city": "Köln"}'))
    chat = ChatOpenAI(
        model="talker",
        base_url=tool_server.url,
        api_key=NO_KEY,
        temperature=0,
        max_completion_tokens=150,
    ).bind_tools([now], strict=True)

    whole = chat.invoke("Hi")
    joined: Any = functools.reduce(operator.add, chat.stream("Hi"))

    for answer in (whole, joined):
        assert answer.content == "Yes."
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
            ("now", {"city": "Köln"})
        ]


def test_langchain_completes_several_texts(server: Process, model: Model) -> None:
    complete = OpenAI(
        model="nanochat-tiny",
        base_url=server.url,
        api_key=NO_KEY,
        temperature=0,
        max_tokens=9,
    )

    assert complete.batch([TEXT, "use std::"]) == [
        model.generate(text, max_tokens=9) for text in (TEXT, "use std::")
    ]


def test_langchain_embeds(server: Process, model: Model) -> None:
    embeddings = OpenAIEmbeddings(
        model="nanochat-tiny",
        base_url=server.url,
        api_key=NO_KEY,
        # It would count tokens with OpenAI's own tokenizer, which it would fetch.
        check_embedding_ctx_length=False,
    )

    (found,) = embeddings.embed_documents([TEXT])

    assert found == model.embed(TEXT).tolist()


def test_the_command_llm_prints_the_answer(server: Process, model: Model, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: nanochat-tiny\n  api_base: {server.url}\n"
    )

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llm",
            "-m",
            "tiny",
            TEXT,
            "-o",
            "temperature",
            "0",
            "-o",
            "max_tokens",
            "12",
        ],
        env={"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.rstrip("\n") == model.chat(TEXT, max_tokens=12).rstrip("\n")
