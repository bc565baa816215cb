"""This file holds the model card of a staged repository: everything that it says is measured, counted or run first.

A card that is there is updated. The part between two marks is written anew; what its author wrote outside of them stays
byte for byte. See `nanochat.publish.metadata` for what stands before the text.
"""

import datetime
import logging
import re
import shlex

from nanochat.errors import FormatError
from nanochat.export.formats import load
from nanochat.publish import card_text
from nanochat.publish.licence import LICENCE_FILES
from nanochat.publish.measure import example_lines, measure, processor, run_examples
from nanochat.publish.metadata import Metadata, newline, update_metadata
from nanochat.publish.options import PushOptions
from nanochat.publish.stage import Repository
from nanochat.publish.upload import Present
from nanochat.text.front_matter import read_metadata, split_card

__all__ = ["BEGIN", "END", "describe", "own_text", "require_updatable", "update_card"]

BEGIN = "<!-- nanochat-ternary: written anew at each push, up to the end mark; write your own text outside -->"
END = "<!-- nanochat-ternary: end -->"
# A line that is a mark.
_MARK = re.compile(rf"^({re.escape(BEGIN)}|{re.escape(END)})(?=[ \t]*\r?$)", re.MULTILINE)
_LOCAL = "README.md of the model"
_LOGGER = logging.getLogger(__name__)


def describe(
    repository: Repository, options: PushOptions, present: Present, *, licence: str
) -> str:
    """The card of a repository, which updates the one that is there, or else the model's own."""
    repo, name = repository.repo, repository.repo.partition("/")[2]
    bundle = load(repository.place, name=name, licence=licence)
    lines = example_lines(repo, bundle, options.prompt)
    evaluations = [*repository.training.evaluations]
    evaluations += [] if repository.base else options.evaluations
    texts = [n for n in LICENCE_FILES if (repository.folder / n).exists() or n in present.files]
    true, untrue = card_text.tags(bundle.config)
    metadata = Metadata(
        name=name,
        licence=licence,
        licence_file=texts[0] if texts else "",
        library=repository.library,
        tags=[*true, *filter(None, repository.tags)],
        untrue_tags=untrue,
        languages=options.languages,
        datasets=options.datasets,
        base_model=repository.base or options.base_model,
        relation="quantized" if repository.base else "",
        evaluations=evaluations,
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    measured = f"On {processor()}, {today}, by `{_command(repository, options)}`"
    sections = [
        card_text.use(run_examples(lines, repository.folder, repo)),
        card_text.sizes(bundle.config),
        card_text.formats(repository.formats),
        card_text.backends(measure(bundle, options.backends, where=repo), measured=measured),
        card_text.training(repository.training.recipe, evaluations),
        card_text.limits(bundle.config, bundle.tokenizer),
    ]
    text, where = _base(repo, present, repository.card)
    return update_card(text, metadata, "\n\n".join(filter(None, sections)), where=where)


def require_updatable(
    repo: str, options: PushOptions, present: Present, *, licence: str, card: bytes
) -> None:
    """Refuse a card that `describe` could not update, before there is anything to describe."""
    metadata = Metadata(
        name=repo,
        licence=licence,
        # Whether there is one has been asked.
        licence_file=LICENCE_FILES[0],
        library="",
        languages=options.languages,
        evaluations=options.evaluations,
    )
    theirs, where = _base(repo, present, card)
    update_card(theirs, metadata, "", where=where)
    if present.card and card:
        mine = own_text(_decoded(card, _LOCAL), where="README.md")
        if [part.strip() for part in mine] != [part.strip() for part in own_text(theirs, where=where)]:  # fmt: skip
            _LOGGER.warning(
                "README.md of the model differs from the card of %s, which is kept: to replace it, run "
                "`hf upload %s PATH/README.md README.md`, and push again",
                repo,
                repo,
            )


def update_card(card: str, metadata: Metadata, body: str, *, where: str) -> str:
    """The card with this metadata, and a text between the marks; `where` is what it is, for errors."""
    assert not _MARK.search(body)
    updated = update_metadata(card, metadata, where=where)
    *front_matter, text = split_card(updated)
    before, after = _around(text, where)
    end = newline(updated)
    block = end.join([BEGIN, *body.strip("\n").split("\n"), END])
    if after is None:
        gap = end * (1 if before.endswith("\n") else 2)
        before = before + gap if before.strip() else end.join(["", f"# {metadata.name}", "", ""])
        after = end
    return "".join([*front_matter, before, block, after])


def own_text(card: str, *, where: str) -> tuple[str, str]:
    """The text of a card before and after the marks, without its metadata: what its author wrote."""
    read_metadata(card, where=where)
    before, after = _around(split_card(card)[-1], where)
    return before, after or ""


def _around(text: str, where: str) -> tuple[str, str | None]:
    """What stands before and after the part between the marks; nothing stands after it if there is no such part."""
    parts = _MARK.split(text)
    marks = parts[1::2]
    if not marks:
        return text, None
    if marks != [BEGIN, END]:
        raise FormatError(
            f"{where}: it must have one line {BEGIN!r} and after it one line {END!r}, but has {marks.count(BEGIN)} and "
            f"{marks.count(END)}: remove all of them, with what is between, or restore the pair"
        )
    return parts[0], parts[-1]


def _base(repo: str, present: Present, card: bytes) -> tuple[str, str]:
    """The card that is updated, and what it is."""
    where = f"README.md of {repo}" if present.card else _LOCAL
    return _decoded(present.card or card, where), where


def _decoded(card: bytes, where: str) -> str:
    try:
        return card.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: it is no text in UTF-8; convert it") from error


def _command(repository: Repository, options: PushOptions) -> str:
    words = ["nanochat", "models", "push", "DIR", repository.base or repository.repo]
    words += [word for form in options.formats for word in ("--format", form)]
    words += ["--separate"] if options.separate else []
    words += [word for backend in options.backends for word in ("--backend", backend)]
    return shlex.join(words)
