"""This file holds a folder of tasks for the harness, whose data are files: nothing of them is on the Hub."""

import json
from pathlib import Path
from typing import TypedDict

__all__ = ["QUESTIONS", "TEXTS", "write_tasks"]


class Question(TypedDict):
    """A question with its answers, and the number of the right one."""

    question: str
    choices: list[str]
    answer: int


_LINE = 'fn main() { println!("Hello, wörld"); } // to be or not to be, that is the question'
# More tokens than the context holds, in one of them.
TEXTS = ["to be or not to be", _LINE * 3, "x", "", "that is the question // wörld"]
QUESTIONS: list[Question] = [
    {"question": f"{_LINE[start : start + 20]}", "choices": choices, "answer": start % len(choices)}
    for start, choices in enumerate(
        [["to be", "not to be"], ["main", "x", "wörld"], ["}", "} // to be"], ["the question", "?"]]
        * 3
    )
]


def write_tasks(folder: Path) -> None:
    """Write a task of each kind: ``choose``, ``perplexity`` and ``write``, and one that runs what is written."""
    for name, rows in (
        ("questions", QUESTIONS),
        ("texts", [{"text": text} for text in TEXTS if text]),
    ):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    mean = {"aggregation": "mean", "higher_is_better": True}
    of_texts = {"aggregation": "bits_per_byte", "higher_is_better": False}
    _write(
        folder,
        "choose",
        "questions",
        output_type="multiple_choice",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc", **mean}],
    )
    _write(
        folder,
        "perplexity",
        "texts",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte", **of_texts}],
    )
    written = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **mean}],
    }
    _write(folder, "write", "questions", **written)
    _write(folder, "run", "questions", unsafe_code=True, **written)


def _write(folder: Path, name: str, data: str, **fields: object) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / f"{data}.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "metadata": {"version": 1.5},
        **fields,
    }
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(task))
