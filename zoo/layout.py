"""This file holds the choice among the models in a repository or folder: which files to fetch, and what to open.

A repository may hold one model in several formats, as `nanochat.publish.publish` lays them out or as others do: tensors
in safetensors files with a ``config.json`` beside them, ``.gguf`` files, folders with a ``model.onnx``. Only files of
these names are ever fetched, so nothing that could be run is; pickled weights are not opened.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from nanochat.errors import FormatError, ModelNotFoundError

__all__ = ["Candidate", "candidates", "choose", "fitting", "require_inside", "require_model"]

Kind = Literal["safetensors", "gguf", "onnx", "web"]

_CONFIG, _ONNX, _PAGE, _MANIFEST = "config.json", "model.onnx", "page.json", "nanochat.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# What may lie beside the tensors and belongs to the model.
_BESIDE = frozenset(
    {
        _CONFIG,
        _MANIFEST,
        "README.md",
        "chat_template.jinja",
        "generation_config.json",
        "recipe.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
_OF_GENAI = frozenset({"genai_config.json"})
_PART_OF_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Types of ternary matrices in the order in which they are preferred: fast first, and dense last.
_GGUF_TYPES = ("TQ2_0", "Q2_0", "TQ1_0", "F16", "BF16", "F32")
# Formats in the order in which they are preferred; "inner" is a folder of safetensors inside of another. Operations
# take codes, which a graph gives back only after a conversion; a runtime of graphs takes a graph.
_ORDER = ("safetensors", "gguf", "inner", "onnx", "web")
_ORDER_OF_GRAPHS = ("onnx", "web", "safetensors", "gguf", "inner")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that could be opened.

    Parameters
    ----------
    kind : {"safetensors", "gguf", "onnx", "web"}
        Its format. "safetensors" is this package's directory, MLX's or that of transformers; they differ only inside.
    place : str
        The file or folder to open, with slashes; empty for the folder itself.
    files : tuple of str
        What has to be there.
    """

    kind: Kind
    place: str
    files: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The folder in which it lies; empty for the outermost."""
        if self.kind == "gguf" or self.place.endswith(".onnx"):
            return _join(PurePosixPath(self.place).parent)
        return self.place


def candidates(names: Iterable[str]) -> list[Candidate]:
    """Every model among the files of a repository, the outermost first.

    Examples
    --------
    >>> names = ["config.json", "model.safetensors", "run.py", "x-TQ2_0.gguf", "onnx/model.onnx"]
    >>> [(c.kind, c.place, c.files) for c in candidates(names)]  # doctest: +NORMALIZE_WHITESPACE
    [('safetensors', '', ('config.json', 'model.safetensors')), ('gguf', 'x-TQ2_0.gguf', ('x-TQ2_0.gguf',)),
     ('onnx', 'onnx', ('onnx/model.onnx',))]
    """
    folders: dict[str, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        folders.setdefault(_join(path.parent), set()).add(path.name)
    found: list[Candidate] = []
    for folder in sorted(folders, key=lambda folder: (folder.count("/") + bool(folder), folder)):
        found += _in_folder(folder, folders[folder])
    return found


def fitting(found: Iterable[Candidate], part: str) -> list[Candidate]:
    """The models that a part stands for; all of them if it is empty."""
    return [candidate for candidate in found if not part or _is_part(candidate, part)]


def choose(
    found: Sequence[Candidate], *, backend: str, part: str, where: str, joint: str = ":"
) -> Candidate:
    """The model to open.

    Parameters
    ----------
    found : sequence of Candidate
        From `candidates`.
    backend : str
        What will run it: a graph for "onnx", for all others a format that holds the codes as they are.
    part : str
        What the user asked for: a format, a folder, a file, or a type of GGUF such as TQ2_0; empty for the best.
    where, joint : str
        The repository or folder, for the error, and what stands between it and a part.

    Raises
    ------
    ModelNotFoundError
        If there is none, none of that part, or several between which only the user can choose.
    """
    possible = fitting(found, part)
    if not possible:
        there = ", ".join(filter(None, (c.place or c.kind for c in found))) or "no model"
        raise ModelNotFoundError(f"{where} has no {part!r:.80}: it holds {there}")
    ranked = sorted(possible, key=lambda candidate: _rank(candidate, backend))
    best = ranked[0]
    rivals = [c for c in ranked if _rank(c, backend) == _rank(best, backend)]
    if len(rivals) > 1:
        places = [c.place for c in rivals]
        raise ModelNotFoundError(
            f"{where} holds {' and '.join(places)}, and nothing says which is better: choose one, "
            f"{where}{joint}{places[0]}"
        )
    return best


def require_model(found: Sequence[Candidate], names: Iterable[str], *, where: str) -> None:
    """Refuse a repository without a model that can be opened, with the reason.

    Raises
    ------
    ModelNotFoundError
        If `found` is empty.
    """
    if found:
        return
    names = list(names)
    if any(_PART_OF_GGUF.search(name) for name in names):
        reason = (
            "its .gguf is split into parts, which are not read: merge them with llama-gguf-split"
        )
    elif any(name.endswith(_PICKLES) for name in names):
        reason = (
            "its weights are pickles, which can run code and are not opened: convert them to safetensors, or "
            "choose a repository that has"
        )
    else:
        reason = (
            "it holds no config.json with safetensors, no .gguf file and no model.onnx, so it is no model of "
            "nanochat-ternary: check the name"
        )
    raise ModelNotFoundError(f"{where} cannot be opened: {reason}")


def require_inside(names: Iterable[str], *, where: str) -> None:
    """Refuse a listing with a name that leads out of its folder.

    Raises
    ------
    FormatError
        With the name.
    """
    for name in names:
        parts = name.split("/")
        if (
            not all(parts)
            or {".", ".."} & set(parts)
            or "\\" in name
            or "\0" in name
            or ":" in name
        ):
            raise FormatError(
                f"{where} lists the file {name!r:.120}, which leads out of its folder: do not use this repository"
            )


def _in_folder(folder: str, names: set[str]) -> Iterable[Candidate]:
    def paths(*wanted: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(f"{folder}/{n}" if folder else n for n in names & set().union(*wanted)))

    tensors = {n for n in names if n in (_SINGLE, _INDEX) or _SHARD.fullmatch(n)}
    if _CONFIG in names and tensors:
        yield Candidate(kind="safetensors", place=folder, files=paths(tensors, _BESIDE))
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not _PART_OF_GGUF.search(name):
            (place,) = paths({name})
            yield Candidate(kind="gguf", place=place, files=(place,))
    if _ONNX not in names:
        return
    graph = {_ONNX, f"{_ONNX}.data"}
    if _PAGE in names:
        # The page's own files are for a browser, and its nanochat.json speaks of them.
        (place,) = paths({_ONNX})
        yield Candidate(kind="web", place=place, files=paths(graph, _BESIDE - {_MANIFEST}))
    elif tensors:
        # The folder itself stands for the tensors.
        (place,) = paths({_ONNX})
        yield Candidate(kind="onnx", place=place, files=paths(graph, _BESIDE))
    else:
        yield Candidate(kind="onnx", place=folder, files=paths(graph, _BESIDE, _OF_GENAI))


def _join(path: PurePosixPath) -> str:
    return "" if path == PurePosixPath() else path.as_posix()


def _is_part(candidate: Candidate, part: str) -> bool:
    wanted = part.strip("/")
    if wanted in (candidate.kind, candidate.place, candidate.folder):
        return True
    return candidate.kind == "gguf" and wanted.upper() in _words(candidate.place)


def _words(name: str) -> list[str]:
    """What a file's name consists of, such as the type of its tensors.

    >>> _words("gguf/model-tq2_0.gguf")
    ['MODEL', 'TQ2_0']
    """
    return re.split(r"[-.]", PurePosixPath(name).stem.upper())


def _rank(candidate: Candidate, backend: str) -> tuple[int, int, int]:
    """Smaller is better: by the format, then the outermost, then the type or the folder's name."""
    depth = candidate.folder.count("/") + bool(candidate.folder)
    order = _ORDER_OF_GRAPHS if backend == "onnx" else _ORDER
    if candidate.kind == "gguf":
        words = _words(candidate.place)
        known = [rank for rank, kind in enumerate(_GGUF_TYPES) if kind in words]
        return order.index("gguf"), depth, min(known, default=len(_GGUF_TYPES))
    if candidate.kind == "safetensors" and depth:
        # Two bits a weight, where other folders may hold sixteen.
        return order.index("inner"), depth, int(candidate.folder.split("/")[-1] != "mlx")
    return order.index(candidate.kind), depth, 0
