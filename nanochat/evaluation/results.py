"""This file holds the file of an evaluation's results, and its tables for people."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanochat import __version__
from nanochat.errors import FormatError, InputError
from nanochat.evaluation.estimates import Estimate
from nanochat.evaluation.rates import MEANINGS
from nanochat.files import atomic_write

__all__ = ["RESULT", "estimates", "markdown", "read_result", "save"]

RESULT = "result.json"
_FORMAT, _VERSION = "nanochat-evaluation", 1
_BY = "nanochat eval"


def save(folder: Path, parts: Mapping[str, object]) -> Path:
    """Write results, and return the path of the file.

    Raises
    ------
    SaveError
        If it cannot be written.
    """
    result = {"format": _FORMAT, "version": _VERSION, "nanochat": __version__, **parts}
    path = folder / RESULT
    atomic_write(path, f"{json.dumps(result, indent=1)}\n".encode())
    return path


def read_result(folder: Path) -> dict[str, Any]:
    """Read the results in a folder.

    Raises
    ------
    InputError
        If there are none.
    FormatError
        If the file holds something else.
    """
    path = folder / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}: pass a folder that `{_BY}` has written") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}; evaluate again") from error
    if not isinstance(result, dict) or result.get("format") != _FORMAT:
        raise FormatError(f"{path} holds no results: pass a folder that `{_BY}` has written")
    return result


def estimates(programs: Mapping[str, Any]) -> Iterator[tuple[str, Estimate, str]]:
    """Yield the rates of programs: name, estimate and meaning."""
    for name, found in programs["rates"].items():
        meaning = MEANINGS.get(
            name, f"of {name.removeprefix('pass@')} samples, at least one passes"
        )
        yield name, Estimate(**found), meaning


def markdown(result: Mapping[str, Any]) -> str:
    """Results as a section of a model card."""
    lines = ["## Evaluation", ""]
    if text := result.get("text"):
        lines += [
            f"{text['bits_per_byte']:.4f} bits per byte (perplexity {text['perplexity']:.2f}) of {text['documents']} "
            f"texts, {text['bytes']} bytes, in windows of {text['window']} tokens ({text['convention']}).",
            "",
        ]
    if tasks := result.get("lm_eval"):
        lines += [
            f"Tasks of lm-evaluation-harness {tasks['lm_eval']}:",
            "",
            "| task | version | examples | metric | value | standard error |",
            "|---|---|---:|---|---:|---:|",
            *(
                f"| {name} | {task['version']} | {task['num_fewshot']} | {metric} | {of['value']:.4f} "
                f"| {'' if of['stderr'] is None else format(of['stderr'], '.4f')} |"
                for name, task in tasks["tasks"].items()
                for metric, of in task["metrics"].items()
            ),
            "",
        ]
    if programs := result.get("programs"):
        drawing = result["drawing"]
        experience = result.get("experience", {})
        before = f", after experience `{experience['sha256'][:12]}`" if experience else ""
        lines += [
            f"Rust functions to complete: {programs['num_problems']} problems of `{programs['problems']}` "
            f"(`{programs['problems_sha256'][:12]}`), {programs['num_samples']} samples each, temperature "
            f"{drawing['temperature']:g}, top-p {drawing['top_p']:g}, at most {drawing['max_tokens']} tokens, seed "
            f"{drawing['seed']}{before}; {programs['rustc']}, sandbox {', '.join(programs['sandbox'])}. "
            "Intervals of 95 % by resampling problems.",
            "",
            "| rate | value | 95 % | meaning |",
            "|---|---:|---|---|",
            *(
                f"| {name} | {100 * e.value:.1f} % | {100 * e.low:.1f} to {100 * e.high:.1f} % | {meaning} |"
                for name, e, meaning in estimates(programs)
            ),
            "",
        ]
    return "\n".join(lines)
