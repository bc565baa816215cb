"""This file holds what is measured of a model at its push: every backend that runs it, and the lines of its card."""

import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from nanochat import backends
from nanochat.backends import host
from nanochat.backends.describe import describe
from nanochat.bundle import Bundle
from nanochat.errors import FormatError, InputError
from nanochat.export.run import start
from nanochat.generation.engine import Runner
from nanochat.proof.check import compare_golden
from nanochat.shapes import num_parameters

__all__ = [
    "NUM_DECODED",
    "BackendRow",
    "Example",
    "example_lines",
    "measure",
    "processor",
    "run_examples",
]

# Tokens whose decoding is timed, and that the lines of a card write.
NUM_DECODED = 32
_WRITTEN = 24
# Parameters from which on the reference takes minutes.
_LARGE = 100_000_000
_MOST_SECONDS = 600


class BackendRow(NamedTuple):
    """A backend: its largest RMS error beside the golden record, and the speed of decoding; `None` if not measured."""

    backend: str
    error: float | None = None
    tokens_per_second: float | None = None


class Example(NamedTuple):
    """Lines in "python" or for "sh" that were run, and what they printed."""

    language: str
    code: str
    output: str


def measure(bundle: Bundle, wanted: Sequence[str], *, where: str) -> list[BackendRow]:
    """Run a model on the backends that are wanted, or on all that can run here; `where` is what it is, for errors."""
    able = [name for name in backends.BACKENDS if backends.unavailable(name) is None]
    too_slow = "" if wanted or num_parameters(bundle.config) <= _LARGE else "reference"
    return [
        BackendRow(name) if name == too_slow else _measure(bundle, name, where=where)
        for name in dict.fromkeys(wanted) or able
    ]


def example_lines(repo: str, bundle: Bundle, prompt: str) -> dict[str, str]:
    """The lines that show the use of a repository, in Python and for a shell."""
    codec = bundle.tokenizer
    room = bundle.config.context_length - len(codec.opening) - len(codec.encode(prompt))
    if room < 1:
        raise InputError(
            f"prompt={prompt!r:.80} fills the model's context of {bundle.config.context_length} tokens: pass a shorter "
            "one"
        )
    count = min(_WRITTEN, room)
    quoted = json.dumps(prompt, ensure_ascii=False)
    python = (
        f'import nanochat\n\nmodel = nanochat.from_pretrained("{repo}")\n'
        f"print(model.generate({quoted}, max_tokens={count}))"
    )
    words = ["nanochat", "generate", repo, "--prompt", prompt, "--temperature", "0"]
    return {"python": python, "sh": shlex.join([*words, "--max-tokens", str(count)])}


def run_examples(lines: Mapping[str, str], folder: Path, repo: str) -> list[Example]:
    """Run the lines of `example_lines` where ``owner/name`` is a directory with these files, without the network."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda item: _run(*item, folder=folder, repo=repo), lines.items()))


def processor() -> str:
    """What computes here, for people."""
    return f"{host.processor()} ({os.cpu_count()} cores, {platform.system()})"


def _measure(bundle: Bundle, backend: str, *, where: str) -> BackendRow:
    """Run a model's golden record and a text on a backend."""
    assert bundle.golden is not None
    runner = start(bundle, backend)
    error = compare_golden(bundle.golden, runner, bundle.weights, where=f"{where}, on {backend}")
    here = describe(runner)
    return BackendRow(
        backend=f"{backend} ({here.get('instructions') or here['device']})",
        error=error,
        tokens_per_second=_tokens_per_second(runner, list(bundle.golden.tokens)),
    )


def _tokens_per_second(runner: Runner[Any], ids: Sequence[int]) -> float | None:
    """Of the most probable tokens one after the other, the median; `None` if the context has no room for them."""
    count = min(NUM_DECODED, runner.config.context_length - len(ids))
    if count < 1:
        return None
    state, logits = runner.prefill(ids, capacity=len(ids) + count)
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        logits = runner.decode([int(logits.argmax())], state)[0]
        seconds.append(time.perf_counter() - begin)
    return 1 / statistics.median(seconds)


def _run(language: str, code: str, *, folder: Path, repo: str) -> Example:
    # Without the working directory among the places of modules: the repository's owner may be called like one.
    words = ["-c", code]
    if language == "sh":
        words = ["-m", "nanochat", *shlex.split(code)[1:]]
    hidden = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / repo
        link.parent.mkdir()
        try:
            link.symlink_to(folder.resolve(), target_is_directory=True)
        except OSError:
            # Windows lets few users make links.
            shutil.copytree(folder, link)
        try:
            done = subprocess.run(
                [sys.executable, "-P", *words],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_MOST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FormatError(
                f"the lines that the card would show ran for more than {_MOST_SECONDS} s: push from a faster machine"
            ) from error
    if done.returncode != 0:
        said = (done.stderr.strip() or "nothing").split("\n")[-1]
        raise FormatError(
            f"the lines that the card would show do not run ({said:.300}), so nothing is uploaded: {code!r:.200}"
        )
    return Example(language=language, code=code, output=done.stdout)
