"""Clients of npm are served: OpenAI's own, and Vercel's AI SDK."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanochat.lm import Model
from tests.serve.processes import Process

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parent / "npm"
TEXT = "fn main() {"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, and what they import."""
    path = tmp_path_factory.mktemp("npm") / "project"
    shutil.copytree(FOLDER, path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(install, cwd=path, check=True, timeout=300)
    return path


def printed(project: Path, script: str, server: Process) -> dict[str, Any]:
    command = ["node", script, server.url]
    done = subprocess.run(
        command, cwd=project, check=True, capture_output=True, text=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_openai_s_client_gets_the_model_s_texts(
    project: Path, server: Process, model: Model
) -> None:
    found = printed(project, "openai.mjs", server)

    assert set(found["chats"]) == {model.chat(TEXT, max_tokens=12)}
    assert found["completion"] == model.generate(TEXT, max_tokens=12)
    assert found["embedding"] == pytest.approx(model.embed(TEXT).tolist(), rel=1e-6)
    assert (found["tokens"], found["error"]) == (12, ["NotFoundError", "model_not_found"])


def test_the_ai_sdk_gets_the_model_s_texts_and_objects(
    project: Path, server: Process, model: Model
) -> None:
    found = printed(project, "ai.mjs", server)

    assert set(found["chats"]) == {model.chat(TEXT, max_tokens=12)}
    assert found["embedding"] == pytest.approx(model.embed(TEXT).tolist(), rel=1e-6)
    assert found["object"]["kind"] in ("cat", "dog")
    assert (found["tokens"], found["error"]) == (12, ["AI_APICallError", 404])
