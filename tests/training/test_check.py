"""One command tries the whole way of a model: trained, written, exported, loaded, run."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.cli import main
from nanochat.lm import Model
from tests.training.runs import command_here


def test_the_whole_way_is_tried_and_told() -> None:
    result = command_here("check")

    assert result.returncode == 0, result.stderr
    steps = re.findall(r"^(.+?) +\d+\.\d s$", result.stdout, re.MULTILINE)
    assert steps == ["train 20 steps", "export to GGUF", "load both", "compare logits", "generate"]
    assert re.search(
        r"^loss 8\.\d\d to 5\.\d\d; it writes 'def main\(\):", result.stdout, re.MULTILINE
    )


def test_an_export_that_computes_otherwise_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = Model.logits

    def other(model: Model, ids: list[int]) -> NDArray[np.float32]:
        return logits(model, ids) + model.name.endswith("gguf")

    monkeypatch.setattr(Model, "logits", other)

    with pytest.raises(SystemExit, match="1"):
        main(["check"])

    assert "error: the exported model computes other logits" in capsys.readouterr().err
