"""This file holds what can be told of a model of the Hub before its download: files, hashes, and its configuration.

Of files of weights, only the headers are read, by requests of ranges. They are laid out as they would be, with holes in
place of the tensors, so that the readers of files read them.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it exports them on demand
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

from nanochat import __version__
from nanochat.config import ModelConfig
from nanochat.errors import FormatError, ModelNotFoundError, NanochatError
from nanochat.export.formats import Candidate, candidates, load_header_config
from nanochat.files import FileRecord
from nanochat.tensors import MAX_INDEX_BYTES
from nanochat.zoo.candidates import Request, choose, reason, require_model
from nanochat.zoo.client import LIBRARY, hub_errors
from nanochat.zoo.listing import commit_there, files_there, require_record

__all__ = ["Remote"]

# What a header is looked for in at first, and at most: metadata of a vocabulary of 2**18 tokens take about 10 MB.
_FIRST_BYTES, _MOST_BYTES = 2**24, 2**27
_CHUNK_BYTES = 2**20
# Of files beside the weights, which are read whole.
_MAX_FILE_BYTES = MAX_INDEX_BYTES
_GGUF, _SAFETENSORS = ".gguf", ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A model of the Hub, as the Hub records it.

    Parameters
    ----------
    commit : str
        40 hexadecimal digits.
    model : Candidate
        What is taken of its repository.
    files : mapping
        The Hub's record of what belongs to it.
    others : tuple of str
        Places of what else could be opened there.
    reason : str
        Why this is taken, in a clause.
    """

    request: Request
    commit: str
    model: Candidate
    files: Mapping[str, RepoFile]
    others: tuple[str, ...]
    reason: str

    @classmethod
    def find(cls, request: Request) -> "Remote":
        """Ask the Hub what `request` stands for now."""
        with hub_errors(request.repo, revision=request.revision):
            commit = commit_there(request)
        listed = files_there(request, commit)
        require_record(listed, where=request.repo)
        found = candidates(listed)
        require_model(found, listed, where=request.repo)
        model = choose(found, backend=request.backend, part=request.part, where=request.repo)
        whole = model.complete(
            listed.__contains__,
            lambda name: _read(request, commit, listed[name]),
            where=request.repo,
        )
        missing = sorted(set(whole.files) - listed.keys())
        if missing:
            raise FormatError(
                f"{request.repo} lacks {missing[0]}, which another of its files names: the upload is incomplete; "
                "choose another repository or revision"
            )
        return cls(
            request=request,
            commit=commit,
            model=whole,
            files={name: listed[name] for name in whole.files},
            others=tuple(one.place or one.kind for one in found if one is not model),
            reason="it was asked for"
            if request.part
            else reason(found, model, backend=request.backend),
        )

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(file.size for file in self.files.values())

    def records(self) -> dict[str, FileRecord]:
        """Size and SHA-256 of each file: of large ones as the Hub records them, of others as they are."""
        return {name: self._record(file) for name, file in sorted(self.files.items())}

    def config(self) -> ModelConfig:
        """The configuration that the headers tell.

        Raises
        ------
        ConfigError, FormatError, ModelNotFoundError
            If they are damaged, or of a model that this package does not run.
        """
        size = _FIRST_BYTES
        while True:
            try:
                return self._config(size)
            except NanochatError:
                # In place of what was cut off there are zeros, which make no header that fits all sizes and offsets.
                if size == _MOST_BYTES or not self._is_cut(size):
                    raise
            size = _MOST_BYTES

    def _is_cut(self, size: int) -> bool:
        return any(n.lower().endswith(_GGUF) and f.size > size for n, f in self.files.items())

    def _config(self, size: int) -> ModelConfig:
        place = self.model.place
        with tempfile.TemporaryDirectory() as folder:
            for file in self.files.values():
                self._lay_out(Path(folder), file, size)
            try:
                return load_header_config(Path(folder) / place)
            except NanochatError as error:
                # Of a place that nobody knows.
                text = str(error).replace(folder, self.request.repo)
                raise type(error)(text) from error

    def _lay_out(self, folder: Path, file: RepoFile, size: int) -> None:
        """Write a file as it is, or with holes behind its header."""
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        if suffix == _SAFETENSORS:
            length = int.from_bytes(_read_first(self.request, self.commit, file, 8), "little")
            data = _read_first(self.request, self.commit, file, 8 + min(length, _MAX_FILE_BYTES))
        elif suffix == _GGUF:
            data = _read_first(self.request, self.commit, file, size)
        elif suffix == ".json":
            data = _read(self.request, self.commit, file)
        else:
            # A graph, a card, a tokenizer of another kind: no configuration stands in them.
            return
        with path.open("wb") as output:
            output.write(data)
            output.truncate(file.size)

    def _record(self, file: RepoFile) -> FileRecord:
        if file.lfs is not None:
            return FileRecord(bytes=file.size, sha256=file.lfs.sha256)
        data = _read(self.request, self.commit, file)
        return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _read(request: Request, commit: str, file: RepoFile) -> bytes:
    """A small file."""
    if file.size > _MAX_FILE_BYTES:
        raise FormatError(
            f"{request.repo}: {file.path} has {file.size} bytes, over the limit of {_MAX_FILE_BYTES}; choose another "
            "repository"
        )
    return _read_first(request, commit, file, file.size)


def _read_first(request: Request, commit: str, file: RepoFile, size: int) -> bytes:
    """The first bytes of a file, of which no more are fetched, even by a server that does not know of ranges."""
    size = min(size, file.size)
    if size == 0:
        return b""
    headers = build_hf_headers(
        token=request.token, library_name=LIBRARY, library_version=__version__
    )
    # Else a server may compress it, and a range would be one of something else.
    headers |= {"Range": f"bytes=0-{size - 1}", "Accept-Encoding": "identity"}
    data = bytearray()
    url = hf_hub_url(request.repo, file.path, revision=commit)
    with (
        hub_errors(request.repo, revision=request.revision),
        http_stream_backoff(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response,
    ):
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            data += chunk
            if len(data) >= size:
                break
    if len(data) < size:
        raise ModelNotFoundError(
            f"{request.repo}: of {file.path} came {len(data)} bytes of the first {size}: the line or a proxy cut it; "
            "try again"
        )
    return bytes(data[:size])
