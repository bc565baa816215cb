"""This file holds where llama.cpp's library is: in a folder that the user names, or fetched once from a registry."""

import base64
import hashlib
import io
import os
import platform
import sys
import tarfile
import urllib.request
from pathlib import Path

from nanochat.errors import BackendError
from nanochat.files import atomic_directory

__all__ = ["library_folder"]

# A prebuilt v0.5.0 for glibc 2.34 and newer, with one file for each generation of processors: 11 MB.
_VERSION = "3.22.1"
_URL = f"https://registry.npmjs.org/@node-llama-cpp/linux-x64/-/linux-x64-{_VERSION}.tgz"
_SHA512 = "5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbfRBJuOg=="
_MAX_BYTES = 64 * 2**20
_FILES = "package/bins/linux-x64/"
_ENVIRONMENT = "NANOCHAT_LLAMA_CPP"


def library_folder() -> Path:
    """The folder that `NANOCHAT_LLAMA_CPP` names, else ``~/.cache/nanochat/llama.cpp``, filled if it is empty.

    Raises
    ------
    BackendError
        If this is no Linux on x86-64, or the library is not there and cannot be fetched.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise BackendError(
            f"llama.cpp is compared on Linux x86-64 only, and this is {sys.platform} {platform.machine()}: "
            "run this comparison there"
        )
    named = os.environ.get(_ENVIRONMENT)
    if named is not None:
        return Path(named)
    folder = Path.home() / ".cache" / "nanochat" / "llama.cpp" / _VERSION
    if not folder.exists():
        _install(folder)
    return folder


def _install(folder: Path) -> None:
    package = _fetch()
    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    if digest != _SHA512:
        raise BackendError(
            f"{_URL}: {len(package)} bytes with the SHA-512 {digest}, must be {_SHA512}: fetch it again, or name a "
            f"folder with libllama.so in {_ENVIRONMENT}"
        )
    with (
        tarfile.open(fileobj=io.BytesIO(package)) as archive,
        atomic_directory(folder) as new,
    ):
        for member in archive.getmembers():
            if member.name.startswith(_FILES) and member.name.endswith(".so"):
                member.name = member.name.removeprefix(_FILES)
                archive.extract(member, new, filter="data")


def _fetch() -> bytes:
    try:
        with urllib.request.urlopen(_URL, timeout=60) as response:
            data: bytes = response.read(_MAX_BYTES)
    except OSError as error:
        raise BackendError(
            f"cannot fetch {_URL} ({error}): connect to the network once, or name a folder with libllama.so in "
            f"{_ENVIRONMENT}"
        ) from error
    return data
