"""This file holds the command line and the model directories that tests of it share."""

import io
import os
from pathlib import Path

import pytest

from nanochat import cli
from nanochat.cli import export
from nanochat.export.directory import save_model
from tests.core.command_line import Result, Run
from tests.parity.random_models import answering_bundle, random_model

MAINS = {"nanochat": cli.main, "nanochat-export": export.main}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process."""

    def run_here(*arguments: object, stdin: bytes = b"", program: str = "nanochat") -> Result:
        monkeypatch.setenv("NANOCHAT_BACKEND", os.environ.get("NANOCHAT_BACKEND", "reference"))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            MAINS[program](list(map(str, arguments)))
        captured = capsys.readouterr()
        return Result(code=int(end.value.code or 0), out=captured.out, err=captured.err)

    return run_here


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "random"
    random_model().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def large_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can write for a long time."""
    path = tmp_path_factory.mktemp("models") / "random"
    random_model(context_length=16_384).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def polite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers everything with wxyz."""
    path = tmp_path_factory.mktemp("models") / "polite"
    save_model(path, answering_bundle())
    return path
