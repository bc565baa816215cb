"""A package of the npm registry is the pinned one, whole, and writes nowhere but into its folder."""

import base64
import hashlib
import io
import socket
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.errors import BackendError
from nanochat.export import npm
from nanochat.export.npm import Package, package_folder

FILES = {"package/lib/a.so": b"first", "package/lib/b.so": b"second", "package/README.md": b"text"}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder that stands for the registry; packages are kept beside it."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(npm, "_REGISTRY", folder.as_uri())
    return folder


def publish(registry: Path, files: dict[str, bytes], *wanted: str) -> Package:
    data = archive(files)
    path = registry / "@scope" / "some" / "-" / "some-1.2.3.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    return Package(name="@scope/some", version="1.2.3", sha512=digest, files=wanted)


def written(registry: Path) -> list[str]:
    home = registry.parent / "home"
    return sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file())


def test_the_files_that_are_wanted_are_unpacked_and_no_others(registry: Path) -> None:
    package = publish(registry, FILES, "lib/*.so")

    folder = package_folder(package)

    assert (folder / "lib" / "a.so").read_bytes() == b"first"
    assert [Path(name).name for name in written(registry)] == ["a.so", "b.so"]
    assert folder == registry.parent / "home/.cache/nanochat/npm/@scope/some/1.2.3"


def test_a_package_is_fetched_once(registry: Path) -> None:
    package = publish(registry, FILES, "lib/*.so")
    folder = package_folder(package)
    (registry / "@scope/some/-/some-1.2.3.tgz").unlink()

    assert package_folder(package) == folder


def test_without_a_network_the_error_says_to_connect_once(registry: Path) -> None:
    package = Package(name="@scope/some", version="1.2.3", sha512="", files=("lib/*.so",))

    with pytest.raises(BackendError, match=r"cannot fetch .*connect to the network once"):
        package_folder(package)

    assert written(registry) == []


def test_a_server_that_speaks_no_http_is_no_registry(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"220 mail.example.org\r\n")

    package = Package(name="some", version="1.2.3", sha512="", files=("lib/*.so",))
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(npm, "_REGISTRY", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread = threading.Thread(target=answer)
        thread.start()

        with pytest.raises(BackendError, match=r"cannot fetch .*connect to the network once"):
            package_folder(package)

        thread.join()
    assert written(registry) == []


def test_other_bytes_than_the_pinned_ones_are_not_unpacked(registry: Path) -> None:
    package = replace(publish(registry, FILES, "lib/*.so"), sha512="another")

    with pytest.raises(BackendError, match=r"with the SHA-512 .*, must be another"):
        package_folder(package)

    assert written(registry) == []


def test_a_package_that_lacks_what_is_wanted_is_refused(registry: Path) -> None:
    package = publish(registry, FILES, "lib/*.so", "dist/*.wasm")

    with pytest.raises(BackendError, match=r"lacks one of lib/\*\.so, dist/\*\.wasm"):
        package_folder(package)


@pytest.mark.parametrize("name", ["package/../../evil.so", "../evil.so"])
def test_a_path_out_of_the_folder_is_refused(name: str, registry: Path) -> None:
    package = publish(registry, {name: b"evil", **FILES}, "*.so")

    with pytest.raises(BackendError, match="cannot be unpacked"):
        package_folder(package)

    assert not list(registry.parent.rglob("*.so"))


def test_an_absolute_path_is_unpacked_within_the_folder(registry: Path) -> None:
    package = publish(registry, {"/some.so": b"x"}, "*.so")

    folder = package_folder(package)

    assert list(registry.parent.rglob("some.so")) == [folder / "some.so"]


def test_an_archive_that_is_none_is_refused(registry: Path) -> None:
    package = publish(registry, FILES, "lib/*.so")
    path = registry / "@scope/some/-/some-1.2.3.tgz"
    path.write_bytes(b"no archive")
    digest = base64.b64encode(hashlib.sha512(b"no archive").digest()).decode()

    with pytest.raises(BackendError, match="cannot be unpacked"):
        package_folder(replace(package, sha512=digest))
