"""This file holds the metadata of a model card: the YAML before its text, of which some keys are ours.

Keys that are not ours keep their values, lists get and lose single words, and the text after it stays byte for byte.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML, a part of the Hub's client, has no types

from nanochat.errors import FormatError, InputError
from nanochat.publish.licence import licence_fields
from nanochat.publish.options import Evaluation
from nanochat.text.front_matter import read_metadata, split_card

__all__ = ["HELD_OUT", "Metadata", "newline", "update_metadata"]

# The result that a training run measures, and that goes with the run; its value is the run's.
HELD_OUT = Evaluation(metric="bits per byte", value=math.nan, dataset="held-out text")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a card must say of the model `name`.

    `licence` is the SPDX identifier of the weights', `licence_file` the file of the repository that holds its text,
    which only a licence that the Hub knows can do without. `library` is whose code, as the Hub shows it, opens the
    repository. Tags, languages and data sets are added to those that are there, untrue tags are taken from them.

    `base_model` is what the model was made from, and `relation` how: "quantized" or "finetune", say. It replaces the
    one that is there; where there are several, it must be among them. A result replaces one of the same metric and
    data set; `HELD_OUT` goes if it is not among the new ones.
    """

    name: str
    licence: str
    licence_file: str = ""
    library: str
    tags: Sequence[str] = ()
    untrue_tags: Sequence[str] = ()
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    base_model: str = ""
    relation: str = ""
    evaluations: Sequence[Evaluation] = ()


def newline(text: str) -> str:
    """What ends the first line of a text."""
    first, separator, _ = text.partition("\n")
    return "\r\n" if separator and first.endswith("\r") else "\n"


def update_metadata(card: str, metadata: Metadata, *, where: str) -> str:
    """The card with this metadata; nothing of it changes if it says all of that already."""
    there = read_metadata(card, where=where)
    updated = _merged(there, metadata, where)
    if updated == there:
        return card
    end = newline(card)
    opening, _, closing, text = split_card(card)
    if not opening:
        opening = closing = f"---{end}"
        text = end + text if text and not text.startswith(("\n", "\r")) else text
    lines = yaml.safe_dump(updated, sort_keys=False, allow_unicode=True, line_break=end)
    return f"{opening}{lines}{closing}{text}"


def _merged(there: Mapping[str, Any], ours: Metadata, where: str) -> dict[str, Any]:
    licence = licence_fields(there, ours.licence, licence_file=ours.licence_file, where=where)
    merged = {**there, **licence}
    _change(merged, "language", ours.languages, where=where)
    _change(merged, "datasets", ours.datasets, where=where)
    if ours.base_model:
        bases = _words(there.get("base_model"))
        if len(bases) > 1 and ours.base_model not in bases:
            raise InputError(
                f"{where} says that the model was made from {', '.join(map(str, bases))!r:.200}, and base_model="
                f"{ours.base_model!r:.100} is none of them: correct the one that is wrong"
            )
        others = () if ours.base_model in bases else bases
        _change(merged, "base_model", [ours.base_model], others, where=where)
    _change(merged, "tags", ours.tags, ours.untrue_tags, where=where)
    merged["library_name"] = ours.library
    if ours.relation:
        merged["base_model_relation"] = ours.relation
    merged.setdefault("pipeline_tag", "text-generation")
    index = _index(there.get("model-index"), ours, where)
    if index:
        return {**merged, "model-index": index}
    return {key: value for key, value in merged.items() if key != "model-index"}


def _words(value: object) -> list[object]:
    """The words of a list, or the single one."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _change(
    values: dict[str, Any], key: str, added: Sequence[str], removed: Sequence[object] = (), *, where: str
) -> None:  # fmt: skip
    """Add words to a list and take others from it, in place."""
    words = _words(values.get(key))
    kept = [word for word in words if word not in removed]
    new = [word for word in dict.fromkeys(added) if word not in kept]
    if not new and kept == words:
        return
    if any(isinstance(word, list | dict) for word in words):
        raise FormatError(
            f"{where}: {key} of its front matter has something else than single words; write it as a list of them, or "
            "remove the rest"
        )
    values[key] = [*kept, *new]


def _index(there: Any, ours: Metadata, where: str) -> Any:
    """The results of others and ours, in the Hub's form; none of a training run that is not this model's."""
    results = [_result(evaluation) for evaluation in ours.evaluations]
    replaced = [_key(one, one["metrics"][0]) for one in (*results, _result(HELD_OUT))]
    match there:
        case [{"results": [*old], **first}, *others] if all(isinstance(one, dict) for one in old):
            kept = [*filter(None, (_without(one, replaced) for one in old)), *results]
            return [{**first, "results": kept}, *others] if kept or not old else others
        case None if results:
            return [{"name": ours.name, "results": results}]
        case _ if results:
            raise FormatError(
                f"{where}: its model-index has no list of results: correct it, or remove it"
            )
    return there


def _result(evaluation: Evaluation) -> dict[str, Any]:
    metric, dataset = evaluation.metric, evaluation.dataset
    kind = dataset if "/" in dataset else "other"
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": dataset, "type": kind},
        "metrics": [{"type": metric.replace(" ", "_"), "value": evaluation.value, "name": metric}],
    }


def _without(result: dict[str, Any], replaced: Sequence[object]) -> dict[str, Any] | None:
    """A result without the metrics that are replaced; `None` if it had no others."""
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        return result
    kept = [metric for metric in metrics if _key(result, metric) not in replaced]
    return {**result, "metrics": kept} if kept or not metrics else None


def _key(result: object, metric: object) -> tuple[object, ...]:
    """What tells a result from others: data set and metric."""
    match result, metric:
        case {"dataset": {"name": name, "type": kind}}, {"type": measured}:
            return name, kind, measured
    return ()
