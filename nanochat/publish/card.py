"""This file holds the model card: keys of its front matter and a part between two marks are ours, the rest not.

A card that exists is updated. Keys of the front matter that are not ours, and all text outside of the marks, stay byte
for byte; lists get and lose single items; what the card says of the licence must not contradict the files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import huggingface_hub

from nanochat.errors import FormatError, InputError
from nanochat.publish.front_matter import (
    Items,
    Value,
    body_start,
    newline,
    read_front_matter,
    update_front_matter,
)

__all__ = [
    "BEGIN",
    "END",
    "HELD_OUT",
    "Evaluation",
    "Metadata",
    "is_of_the_hub",
    "own_text",
    "require_licence",
    "update_card",
]

BEGIN = "<!-- nanochat-ternary: written anew at each push, up to the end mark; write your own text outside -->"
END = "<!-- nanochat-ternary: end -->"

# Metric and data set of the result that a training run measures, which goes with the run.
HELD_OUT = ("bits per byte", "held-out text")
# The SPDX identifiers among the Hub's own names of licences, huggingface.co/docs/hub/repositories-licenses.
_OF_THE_HUB = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gpl-2.0 gpl-3.0 isc
    lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 postgresql unlicense wtfpl zlib
    """.split()  # noqa: SIM905 (a list would have a line for each)
)
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+() -]{0,99}")
_NO_LICENCES = ("unknown", "other", "none", "noassertion")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A result of the model.

    Parameters
    ----------
    metric : str
        Name of what was measured, such as "bits per byte".
    value : float
        The result.
    dataset : str
        What it was measured on: a data set of the Hub, or words.
    """

    metric: str
    value: float
    dataset: str


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the front matter of a card must say.

    Parameters
    ----------
    name : str
        The model's.
    licence : str
        SPDX identifier of the weights' licence.
    licence_file : str
        File of the repository that holds its text; may be empty for a licence that the Hub knows.
    library : str
        Whose code, as the Hub shows it, opens this repository.
    tags, languages, datasets : sequence of str
        Added to those that are there.
    untrue_tags : sequence of str
        Taken from those that are there.
    base_model, relation : str
        ``owner/name`` that the model was made from, and how: "quantized" or "finetune", say. Both may be empty. It
        replaces the one that is there; where there are several, it must be among them.
    evaluations : sequence of Evaluation
        Added to those that are there; one of the same metric and data set is replaced. `HELD_OUT` goes if it is not
        among them.
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


def is_of_the_hub(licence: str) -> bool:
    """Whether the Hub has a name for a licence, and so its text."""
    return _hub_name(licence) is not None


def require_licence(licence: str, *, licence_file: str) -> None:
    """Refuse what is no licence, and one whose text nobody could find.

    Raises
    ------
    InputError
        With what to pass or to write.
    """
    if licence.lower() in _NO_LICENCES or not _LICENCE.fullmatch(licence):
        raise InputError(
            f"licence={licence!r:.80} is no licence: pass an SPDX identifier such as MIT or Apache-2.0"
        )
    if not is_of_the_hub(licence) and not licence_file:
        raise InputError(
            f"licence={licence!r:.80} is none that the Hub knows by name: put its text into the model's directory as "
            "LICENSE, so that the card can link to it, or check the spelling of its SPDX identifier"
        )


def update_card(card: str, metadata: Metadata, body: str, *, where: str) -> str:
    """The card with this front matter, and this text between the marks.

    Parameters
    ----------
    card : str
        The one that exists; empty for a new one.
    body : str
        Markdown; see `nanochat.publish.card_body`.
    where : str
        What the card is, for the error.

    Raises
    ------
    FormatError
        If its front matter is no YAML, or its marks are not one pair.
    InputError
        If it names another licence, or something in `metadata` is not what its place holds.
    """
    assert not _marks(body, BEGIN)
    assert not _marks(body, END)
    values = read_front_matter(card, where=where)
    updated = update_front_matter(card, _changes(values, metadata, where), where=where)
    start = body_start(updated)
    head, text = updated[:start], updated[start:]
    end_of_line = newline(updated)
    block = end_of_line.join([BEGIN, *body.strip("\n").split("\n"), END])
    span = _own_span(text, where)
    if span is not None:
        return head + text[: span[0]] + block + text[span[1] :]
    if not text.strip():
        title = f"# {metadata.name}"
        return head + end_of_line.join(["", title, "", block, ""])
    gap = end_of_line * (1 if text.endswith("\n") else 2)
    return head + text + gap + block + end_of_line


def own_text(card: str, *, where: str) -> tuple[str, str]:
    """The text of a card before and after the marks, without its front matter: what its author wrote.

    Raises
    ------
    FormatError
        As for `update_card`.
    """
    read_front_matter(card, where=where)
    text = card[body_start(card) :]
    span = _own_span(text, where)
    return (text, "") if span is None else (text[: span[0]], text[span[1] :])


def _own_span(text: str, where: str) -> tuple[int, int] | None:
    """Where the part between the marks begins and ends, with both."""
    begins, ends = _marks(text, BEGIN), _marks(text, END)
    if not begins and not ends:
        return None
    if len(begins) == len(ends) == 1 and begins[0] < ends[0]:
        return begins[0], ends[0] + len(END)
    raise FormatError(
        f"{where}: it must have one line {BEGIN!r} and after it one line {END!r}, but has {len(begins)} and "
        f"{len(ends)}: remove all of them, with what is between, or restore the pair"
    )


def _marks(text: str, mark: str) -> list[int]:
    """Where the lines begin that are a mark."""
    return [
        m.start() for m in re.finditer(rf"^{re.escape(mark)}(?=[ \t]*\r?$)", text, re.MULTILINE)
    ]


def _changes(values: Mapping[str, Value], metadata: Metadata, where: str) -> dict[str, object]:
    for language in metadata.languages:
        if not _LANGUAGE.fullmatch(language):
            raise InputError(
                f"language {language!r:.40} is no code: pass one of ISO 639 such as en, or code, or multilingual"
            )
    changes: dict[str, object] = {
        **_licence(values, metadata, where),
        "language": Items(added=metadata.languages),
        "datasets": Items(added=metadata.datasets),
        "base_model": _base(values, metadata, where),
        "tags": Items(added=metadata.tags, removed=metadata.untrue_tags),
        "library_name": metadata.library,
    }
    if metadata.relation:
        changes["base_model_relation"] = metadata.relation
    if "pipeline_tag" not in values:
        changes["pipeline_tag"] = "text-generation"
    return {**changes, **_index(values, metadata, where)}


def _licence(values: Mapping[str, Value], metadata: Metadata, where: str) -> dict[str, object]:
    require_licence(metadata.licence, licence_file=metadata.licence_file)
    name = _hub_name(metadata.licence)
    wanted = {"license": name} if name else _other_licence(metadata)
    for key in ("license", "license_name"):
        if key in values and not values[key].is_scalar:
            raise InputError(
                f"{where} names no single licence: write one line, {key}: {wanted.get(key, metadata.licence)}"
            )
    there = {
        key: values[key].texts[0]
        for key in ("license", "license_name")
        if key in values and values[key].texts
    }
    said = there.get("license_name") if there.get("license") == "other" else there.get("license")
    spellings = {metadata.licence.lower(), *(str(value).lower() for value in wanted.values())} - {
        "other"
    }
    if said is None or said.lower() in _NO_LICENCES:
        return dict(wanted)
    if said.lower() not in spellings:
        raise InputError(
            f"{where} says that the licence is {said!r:.80}, and the files say {metadata.licence}: correct the one "
            "that is wrong"
        )
    # What is there says the same.
    return {}


def _other_licence(metadata: Metadata) -> dict[str, str]:
    slug = re.sub(r"[^a-z0-9.+]+", "-", metadata.licence.lower()).strip("-")
    return {"license": "other", "license_name": slug, "license_link": metadata.licence_file}


def _hub_name(licence: str) -> str | None:
    """The Hub's name of a licence; it does not tell "only" from "or later"."""
    name = licence.lower().removesuffix("-only").removesuffix("-or-later")
    return name if name in _OF_THE_HUB else None


def _base(values: Mapping[str, Value], metadata: Metadata, where: str) -> Items:
    wanted = metadata.base_model
    there = values["base_model"].texts if "base_model" in values else []
    if not wanted or wanted in there:
        return Items()
    if len(there) > 1:
        raise InputError(
            f"{where} says that the model was made from {', '.join(there)!r:.200}, and base_model={wanted!r:.100} is "
            "none of them: correct the one that is wrong"
        )
    return Items(added=[wanted], removed=there)


def _index(values: Mapping[str, Value], metadata: Metadata, where: str) -> dict[str, object]:
    """The results that are there and ours, in the Hub's form; none of a training run that is not this model's."""
    there = values["model-index"].plain if "model-index" in values else None
    ours = _results(metadata.name, metadata.evaluations)
    old = _results(metadata.name, [Evaluation(metric=HELD_OUT[0], value=0.0, dataset=HELD_OUT[1])])
    replaced = {
        _identity(result, metric) for result in (*ours, *old) for metric in result["metrics"]
    }
    match there:
        case [{"results": [*results], **first}, *others] if all(
            isinstance(r, dict) for r in results
        ):
            kept = [*filter(None, (_without(result, replaced) for result in results)), *ours]
            index = [{**first, "results": kept}, *others] if kept or not results else others
            return {"model-index": index or None}
        case None if ours:
            return {"model-index": [{"name": metadata.name, "results": ours}]}
        case _ if ours:
            raise FormatError(
                f"{where}: its model-index has no list of results: correct it, or remove it"
            )
    return {}


def _results(name: str, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Results in the Hub's form."""
    if not evaluations:
        return []
    data = huggingface_hub.ModelCardData(
        model_name=name,
        eval_results=[
            huggingface_hub.EvalResult(
                task_type="text-generation",
                dataset_type=evaluation.dataset if "/" in evaluation.dataset else "other",
                dataset_name=evaluation.dataset,
                metric_type=evaluation.metric.replace(" ", "_"),
                metric_name=evaluation.metric,
                metric_value=evaluation.value,
            )
            for evaluation in evaluations
        ],
    )
    index = data.to_dict()["model-index"]  # type: ignore[no-untyped-call]  # the client's
    return cast(list[dict[str, Any]], index[0]["results"])


def _identity(result: Mapping[str, Any], metric: object) -> tuple[str, ...]:
    dataset = result.get("dataset")
    named = (
        [dataset.get("type"), dataset.get("name")] if isinstance(dataset, dict) else [dataset, ""]
    )
    kind = metric.get("type") if isinstance(metric, dict) else metric
    return (*map(str, named), str(kind))


def _without(result: dict[str, Any], replaced: set[tuple[str, ...]]) -> dict[str, Any] | None:
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        return result
    kept = [metric for metric in metrics if _identity(result, metric) not in replaced]
    return {**result, "metrics": kept} if kept or not metrics else None
