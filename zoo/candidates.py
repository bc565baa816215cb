"""This file holds the choice among the models in a repository or folder: which files to fetch, and what to open.

A repository may hold one model in several formats, as `nanochat.publish.push` lays them out or as others do.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat import backends
from nanochat.bundle import Bundle
from nanochat.errors import FormatError, ModelNotFoundError
from nanochat.export.formats import Candidate, layouts
from nanochat.files import FileRecord
from nanochat.zoo.entries import Entry

__all__ = [
    "Fetched",
    "Location",
    "Request",
    "choose",
    "fitting",
    "reason",
    "require_inside",
    "require_model",
]

_LOGGER = logging.getLogger(__name__)


def fitting(found: Iterable[Candidate], part: str) -> list[Candidate]:
    """The models that a part stands for; all of them if it is empty."""
    wanted = part.strip("/")
    return [
        one
        for one in found
        if not part or wanted in (one.place, one.folder) or one.layout.is_part(one.place, wanted)
    ]


def choose(
    found: Sequence[Candidate], *, backend: str, part: str, where: str, separator: str = ":"
) -> Candidate:
    """The model to open.

    Parameters
    ----------
    found : sequence of Candidate
        From `nanochat.export.formats.candidates`.
    backend : str
        What will run it: a graph for "onnx", for all others a format that holds the codes as they are.
    part : str
        What the user asked for: a format, a folder, a file, or a type of GGUF such as TQ2_0; empty for the best.
    where, separator : str
        The repository or folder, for the error, and what stands between it and a part.
    """
    possible = fitting(found, part)
    if not possible:
        there = ", ".join(filter(None, (c.place or c.kind for c in found))) or "no model"
        raise ModelNotFoundError(f"{where} has no {part!r:.80}: it holds {there}")
    ranks = [_rank(candidate, backend) for candidate in possible]
    best = [c for c, rank in zip(possible, ranks, strict=True) if rank == min(ranks)]
    if len(best) > 1:
        places = [candidate.place for candidate in best]
        raise ModelNotFoundError(
            f"{where} holds {' and '.join(places)}, and nothing says which is better: choose one, "
            f"{where}{separator}{places[0]}"
        )
    taken, others = best[0], [c.place for c in found if c is not best[0] and c.place]
    if others and not part:
        _LOGGER.info(
            "%s holds several models, of which %s is opened, because %s: for another, pass %s%s%s",
            where,
            taken.place or f"the folder's own {taken.kind}",
            reason(found, taken, backend=backend),
            where,
            separator,
            others[0],
        )
    return taken


def reason(found: Iterable[Candidate], taken: Candidate, *, backend: str) -> str:
    """Why `choose` takes one of several models, in a clause: what tells it from the next best."""
    rank = _rank(taken, backend)
    others = [one for one in found if _rank(one, backend) > rank]
    if not others:
        return "it is the only one"
    other = min(others, key=lambda one: _rank(one, backend))
    ranks = zip(rank, _rank(other, backend), strict=True)
    kinds = "graphs" if taken.layout.is_graph else "codes"
    return (
        f"backend {backend} runs {kinds}",
        f"{taken.kind} comes before {other.kind}",
        "it is the outermost",
        "its type of tensors, as the names tell them, is the fastest here",
    )[next(place for place, (mine, its) in enumerate(ranks) if mine != its)]


def require_model(found: Sequence[Candidate], names: Iterable[str], *, where: str) -> None:
    """Refuse a repository without a model that can be opened, with the reason."""
    if found:
        return
    there = set(names)
    reasons = [reason for one in layouts() if (reason := one.obstacle(there)) is not None]
    *first, last = dict.fromkeys(f"no {one.needs}" for one in layouts())
    needed = f"{', '.join(first)} and {last}"
    nothing = f"it holds {needed}, so it is no model of nanochat-ternary: check the name"
    raise ModelNotFoundError(f"{where} cannot be opened: {next(iter(reasons), nothing)}")


def require_inside(names: Iterable[str], *, where: str) -> None:
    """Refuse a listing with a name that leads out of its folder."""
    for name in names:
        if {"", ".", ".."} & set(name.split("/")) or set("\\\0:") & set(name):
            raise FormatError(
                f"{where} lists the file {name!r:.120}, which leads out of its folder: do not use this repository"
            )


def _rank(candidate: Candidate, backend: str) -> tuple[bool, int, int, int]:
    """Smaller is better: what the backend runs as it is, then by the layout, then the outermost, then among its own."""
    layout, folder = candidate.layout, candidate.folder
    order, own = layout.preference(candidate.place, folder)
    depth = folder.count("/") + bool(folder)
    return layout.is_graph != (backend in backends.graphs()), order, depth, own


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is wanted of the Hub; see `nanochat.zoo.hub.locate`."""

    repo: str
    revision: str = ""
    part: str = ""
    backend: str = "auto"
    token: str | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False
    # Read files again that are known from before.
    verify: bool = False
    # Leave the reading of large files to another thread: see `Fetched.is_whole`.
    beside: bool = False


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A model of the Hub on this disk.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    snapshot : Path
        The folder of its repository at this commit.
    model : Candidate
        What was chosen.
    bytes : int
        Size of its files.
    is_listed : function
        Whether the Hub lists a file of it with that size and SHA-256; of regular files, which it lists by another hash,
        it does not say so.
    is_whole : function
        Wait until another thread has compared the files that were left to it; whether all are as the Hub lists them.
    """

    repo: str
    snapshot: Path
    model: Candidate
    bytes: int
    is_listed: Callable[[str, FileRecord], bool] = field(repr=False, compare=False)
    is_whole: Callable[[], bool] = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The file or folder to open."""
        return self.snapshot / self.model.place

    @property
    def commit(self) -> str:
        """40 hexadecimal digits."""
        return self.snapshot.name


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model is.

    Parameters
    ----------
    path : Path
        The directory, ``.gguf`` or ``.onnx`` file to open.
    name : str
        What the model is called: its name in the catalog or on the Hub, or that of its file or directory.
    fetched : Fetched or None
        What was fetched, if it is of the Hub.
    entry : Entry or None
        What the catalog says of it.
    """

    path: Path
    name: str
    fetched: Fetched | None = None
    entry: Entry | None = None

    def is_whole(self) -> bool:
        """Whether nothing is damaged of what `nanochat.zoo.hub.locate` has left to another thread."""
        return self.fetched is None or self.fetched.is_whole()

    def with_stated(self, bundle: Bundle) -> Bundle:
        """The same model, with what the catalog says of sampling where its files say nothing."""
        stated = {} if self.entry is None else self.entry.sampling
        if not stated or bundle.generation_from:
            return bundle
        generation = {**bundle.generation, "do_sample": True, **stated}
        return replace(bundle, generation=generation, generation_from="the catalog")

    @property
    def origin(self) -> str:
        """Where its files come from, in a word or two."""
        if self.fetched is None:
            return str(self.path)
        return f"{self.fetched.repo}@{self.fetched.commit[:12]}"
