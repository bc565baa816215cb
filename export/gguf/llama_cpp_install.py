"""This file holds where llama.cpp's library is: in a folder that the user names, or fetched once from a registry."""

import os
import platform
import sys
from pathlib import Path

from nanochat.errors import BackendError
from nanochat.export.npm import Package, package_folder

__all__ = ["library_folder"]

# A prebuilt v0.5.0 for glibc 2.34 and newer, with one file for each generation of processors: 11 MB.
_PACKAGE = Package(
    name="@node-llama-cpp/linux-x64",
    version="3.22.1",
    sha512="5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbfRBJuOg==",
    files=("bins/linux-x64/*.so",),
)
_ENVIRONMENT = "NANOCHAT_LLAMA_CPP"


def library_folder() -> Path:
    """The folder that `NANOCHAT_LLAMA_CPP` names, else that of the package, fetched if it is not there.

    Raises
    ------
    BackendError
        If this is no Linux on x86-64, or the library is not there and cannot be fetched.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise BackendError(
            f"llama.cpp is run on Linux x86-64 only, and this is {sys.platform} {platform.machine()}: do this there"
        )
    named = os.environ.get(_ENVIRONMENT)
    if named is not None:
        return Path(named)
    return package_folder(_PACKAGE) / "bins" / "linux-x64"
