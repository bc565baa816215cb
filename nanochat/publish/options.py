"""This file holds what may be chosen about a publication on the Hub, and the repositories that it makes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import InputError
from nanochat.export.formats import FORMATS
from nanochat.export.source import Source
from nanochat.files import exists
from nanochat.publish.metadata import Evaluation, require_licence
from nanochat.publish.staging import LICENCE_FILES, open_original
from nanochat.publish.upload import Destination, require_destination
from nanochat.zoo.hub import is_repo

__all__ = ["Options", "choose_licence", "destinations", "find_licence_file", "require_publishable"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is published.

    Parameters
    ----------
    licence : str
        SPDX identifier of the weights' licence; empty for what the model's files say, which it must not contradict.
    formats : sequence of str
        Formats of `nanochat.export.formats` to add.
    separate : bool
        Whether each format gets a repository of its own, ``owner/name-gguf`` and so on, that names this one as its
        base. Otherwise all are in one: a ``.gguf`` file, and a folder for each of the others.
    private, branch, create_pr, token, message
        See `nanochat.publish.upload.Destination`.
    base_model : str
        ``owner/name`` of the model that this one was made from; may be empty.
    datasets, languages : sequence of str
        What it was trained on, by names of the Hub, and the languages of that: codes of ISO 639, or "code".
    evaluations : sequence of Evaluation
        Results to show.
    backends : sequence of str
        What to verify and measure it on; empty for all that can run here.
    prompt : str
        Text that the lines of the card continue.
    beside : sequence of str
        Names of further files to upload, which lie beside the model's.
    licence_file : Path or None
        The text of the licence, named as one of `nanochat.publish.staging.LICENCE_FILES`; `None` is what lies beside
        the model.
    """

    licence: str = ""
    formats: Sequence[str] = ()
    separate: bool = False
    private: bool | None = None
    branch: str = ""
    create_pr: bool = False
    token: str | None = field(default=None, repr=False)
    message: str = ""
    base_model: str = ""
    datasets: Sequence[str] = ()
    languages: Sequence[str] = ()
    evaluations: Sequence[Evaluation] = ()
    backends: Sequence[str] = ()
    prompt: str = "Once upon a time"
    beside: Sequence[str] = ()
    licence_file: Path | None = None


def destinations(repo: str, options: Options) -> list[Destination]:
    """Where a publication goes: the model's own repository first.

    Raises
    ------
    InputError
        If one of them cannot be, or an option is none.
    """
    unknown = sorted(set(options.formats) - FORMATS.keys())
    if unknown or len(set(options.formats)) < len(options.formats):
        raise InputError(
            f"formats={list(options.formats)}: choose some of {', '.join(FORMATS)}, each once"
        )
    if not options.prompt.strip() or not options.prompt.isprintable():
        raise InputError(f"prompt={options.prompt!r:.80}: pass a few words on one line")
    if options.base_model and not is_repo(options.base_model):
        raise InputError(
            f"base_model={options.base_model!r:.200} is no repository of the Hub: pass OWNER/NAME"
        )
    for dataset in options.datasets:
        # Old ones have no owner.
        if not is_repo(dataset if "/" in dataset else f"owner/{dataset}"):
            raise InputError(
                f"datasets: {dataset!r:.200} is no data set of the Hub: pass OWNER/NAME, or leave it out"
            )
    found = [
        Destination(
            repo=name,
            branch=options.branch,
            create_pr=options.create_pr,
            private=options.private,
            token=options.token,
            message=options.message,
        )
        for name in (repo, *(f"{repo}-{kind}" for kind in options.formats if options.separate))
    ]
    for destination in found:
        require_destination(destination)
    return found


def require_publishable(model: Path | Source, options: Options) -> str:
    """Refuse what could not be published whatever its files compute, and return its licence.

    Raises
    ------
    InputError
        If there is no licence, or two.
    FormatError, ModelNotFoundError
        As for `nanochat.publish.staging.open_original`.
    """
    licence_file = options.licence_file
    if isinstance(model, Source):
        own = model.licence
    else:
        original = open_original(model)
        own = original.licence
        licence_file = licence_file or find_licence_file(original.folder)
        if original.kind in options.formats and not options.separate:
            raise InputError(f"{model} is {original.kind} already: leave that format out")
    return choose_licence(own, options.licence, licence_file=licence_file)


def find_licence_file(folder: Path) -> Path | None:
    """The text of a licence that lies in a folder."""
    return next((folder / name for name in LICENCE_FILES if exists(folder / name)), None)


def choose_licence(own: str, given: str, *, licence_file: Path | None = None) -> str:
    """The one licence that files and user name.

    Parameters
    ----------
    own : str
        What the files say; empty, or "unknown", if they say nothing.
    given : str
        What the user says; may be empty.
    licence_file : Path or None
        Its text.

    Raises
    ------
    InputError
        If there is none, there are two, or it is none that anybody could find.
    """
    own = "" if own.lower() == "unknown" else own
    if own and given and own.lower() != given.lower():
        raise InputError(
            f"licence={given!r:.80}, but the files say {own}: leave it out, or write the model again with the right one"
        )
    licence = own or given
    if not licence:
        raise InputError(
            "nothing says which licence the weights have, and without one nobody may use them: pass licence (--licence "
            "for commands), an SPDX identifier such as MIT or Apache-2.0"
        )
    require_licence(licence, licence_file=licence_file.name if licence_file else "")
    return licence
