"""What is told of a model before its download is what is there, and no more than headers are fetched for it."""

import dataclasses
from pathlib import Path

import pytest

from nanochat.config import ModelConfig, config_to_dict
from nanochat.errors import FormatError, ModelNotFoundError, NanochatError
from nanochat.export.directory import save_model
from nanochat.export.formats import load_config
from nanochat.export.gguf.write import write_gguf
from nanochat.files import record_file
from nanochat.zoo import remote
from nanochat.zoo.candidates import Request
from nanochat.zoo.remote import Remote
from tests.export.foreign_ggufs import Case, Tensor, tensors, write
from tests.export.foreign_models import build, save
from tests.export.test_gguf_parts import write_parts
from tests.parity.random_models import random_bundle
from tests.zoo import hub_api
from tests.zoo.hub_api import Answer
from tests.zoo.hub_client import HubClient

REQUEST = Request(repo="org/name")
CASE = Case(architecture="qwen3", kind="Q2_0", table="Q6_K", tied=False)


@pytest.fixture
def put(client: HubClient, tmp_path: Path) -> Path:
    """A folder that is at the Hub when `upload` has been called."""
    del client
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def upload(client: HubClient, folder: Path) -> str:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return client.hub.add("org/name", files)


def fetched_bytes(client: HubClient) -> int:
    """Of weights, as asked for."""
    ranges = [request.range for request in client.hub.asked("/cdn/*", "GET")]
    assert all(ranges)
    return sum(int(one.rpartition("-")[2]) + 1 for one in ranges)


def test_commit_files_and_hashes_are_those_of_the_repository(client: HubClient, put: Path) -> None:
    save_model(put, random_bundle())
    commit = upload(client, put)

    found = Remote.find(REQUEST)
    records = found.records()

    assert found.commit == commit
    assert records.keys() >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert records == {name: record_file(put / name) for name in records}
    assert found.bytes == sum(record.bytes for record in records.values())
    assert fetched_bytes(client) == 0


@pytest.mark.parametrize("kind", ["ours", "gguf", "bitnet"])
def test_the_configuration_is_that_of_the_files(client: HubClient, put: Path, kind: str) -> None:
    place = put
    if kind == "ours":
        save_model(put, random_bundle())
    elif kind == "gguf":
        place = put / "x-TQ2_0.gguf"
        write_gguf(place, random_bundle(), outtype="tq2_0")
    else:
        save(build("autobitlinear packed"), "autobitlinear packed", put)
    upload(client, put)

    found = Remote.find(REQUEST).config()

    assert found == load_config(place)


# Which blocks share their scales is told by the tensors alone, and a reader may keep tables in another form.
UNKNOWN = {"weight_block", "activation_block", "table_format", "head_format"}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (CASE, {"table_format": "int8_16", "weight_block": 64}),
        (Case(architecture="llama", kind="TQ1_0", table="F16"), {"table_format": "float16"}),
        (Case(architecture="qwen2", table="Q8_0"), {"table_format": "int8_32"}),
        (Case(architecture="qwen3moe", table="BF16"), {"table_format": "bfloat16"}),
        (Case(architecture="qwen3", table="TQ2_0"), {"table_format": "ternary"}),
    ],
    ids=lambda value: value.architecture if isinstance(value, Case) else "",
)
def test_a_header_of_another_program_tells_shape_tables_and_blocks(
    client: HubClient, put: Path, case: Case, expected: dict[str, object]
) -> None:
    if case.table == "TQ2_0":
        plain = write(put / "plain.gguf", dataclasses.replace(case, table="F16"))
        matrix = tensors(dataclasses.replace(case, table="F16"))["blk.0.ffn_up.weight"]
        path = write(
            put / "x.gguf",
            dataclasses.replace(case, table="F16"),
            changed_tensors={"token_embd.weight": _first_rows(matrix, 320)},
        )
        plain.unlink()
    else:
        path = write(put / "x.gguf", case)
    upload(client, put)

    found = Remote.find(REQUEST).config()

    assert {name: getattr(found, name) for name in expected} == expected
    if case.table != "TQ2_0":
        told, read = (config_to_dict(config) for config in (found, load_config(path)))
        assert {k: v for k, v in told.items() if read[k] != v}.keys() <= UNKNOWN
    assert found.weight_block == expected.get("weight_block", 256)


def _first_rows(matrix: Tensor, rows: int) -> Tensor:
    shape, number, data = matrix
    return (rows, *shape[1:]), number, data[: rows * len(data) // shape[0]]


def sizes(path: Path, case: Case) -> tuple[int, int]:
    """Bytes of a file, and of what stands before its tensors."""
    size = path.stat().st_size
    return size, size - sum(len(data) + -len(data) % 32 for _, _, data in tensors(case).values())


def test_a_header_longer_than_the_first_range_is_asked_for_again_and_no_weights_are(
    client: HubClient, put: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(put / "x.gguf", CASE)
    size, header = sizes(path, CASE)
    monkeypatch.setattr(remote, "_FIRST_BYTES", header // 2)
    monkeypatch.setattr(remote, "_MOST_BYTES", header)
    upload(client, put)

    found = Remote.find(REQUEST).config()

    assert found.width == 256
    assert fetched_bytes(client) == header // 2 + header < size


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_no_header_that_was_cut_passes_for_a_whole_one(
    client: HubClient, put: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    path = write(put / "x.gguf", CASE)
    _, header = sizes(path, CASE)
    monkeypatch.setattr(remote, "_FIRST_BYTES", int(share * header))
    monkeypatch.setattr(remote, "_MOST_BYTES", int(share * header))
    upload(client, put)

    with pytest.raises(NanochatError):
        Remote.find(REQUEST).config()


def test_a_server_that_knows_no_ranges_is_not_listened_to_for_long(
    client: HubClient, put: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(put / "x.gguf", CASE)
    upload(client, put)
    monkeypatch.setattr(hub_api, "_ranged", lambda _call, data, headers: Answer(200, data, headers))

    assert Remote.find(REQUEST).config().width == 256


def test_of_a_model_in_several_files_all_headers_are_read(client: HubClient, put: Path) -> None:
    first = write_parts(put)
    (put / "model.gguf").unlink(missing_ok=True)
    upload(client, put)

    found = Remote.find(REQUEST)

    assert len(found.files) == 3
    assert found.config() == load_config(first)
    assert found.bytes == sum(path.stat().st_size for path in put.iterdir())


def test_a_file_that_comes_too_short_is_said_to_be(client: HubClient, put: Path) -> None:
    write(put / "x.gguf", CASE)
    upload(client, put)
    client.hub.fault("/cdn/*", truncate=100)

    with pytest.raises(ModelNotFoundError, match=r"of x\.gguf came 100 bytes of the first"):
        Remote.find(REQUEST).config()


def test_a_line_that_is_cut_is_said_to_be(client: HubClient, put: Path) -> None:
    write(put / "x.gguf", CASE)
    upload(client, put)
    client.hub.fault("/cdn/*", cut=100, times=99)

    with pytest.raises(ModelNotFoundError, match="org/name could not be fetched"):
        Remote.find(REQUEST).config()


def test_a_damaged_header_is_refused(client: HubClient, put: Path) -> None:
    (put / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    upload(client, put)

    with pytest.raises(FormatError, match=r"^org/name/x\.gguf: a big-endian GGUF file"):
        Remote.find(REQUEST).config()


@pytest.mark.parametrize("length", [2**63 - 1, 10**6])
def test_of_a_header_that_says_it_is_huge_no_more_is_asked_for_than_there_may_be(
    client: HubClient, put: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    save_model(put, random_bundle())
    data = (put / "model.safetensors").read_bytes()
    (put / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
    limit = max(path.stat().st_size for path in put.glob("*.json"))
    monkeypatch.setattr(remote, "_MAX_FILE_BYTES", limit)
    upload(client, put)

    Remote.find(REQUEST).config()

    assert fetched_bytes(client) == 8 + min(8 + limit, len(data))


def test_of_several_files_that_fit_one_is_taken_with_a_reason(client: HubClient) -> None:
    client.hub.add("org/name", {f"x-{kind}.gguf": b"GGUF" for kind in ("F16", "Q2_0", "PQ2_0")})

    found = Remote.find(REQUEST)
    asked = Remote.find(dataclasses.replace(REQUEST, part="F16"))

    assert (found.model.place, found.others) == ("x-PQ2_0.gguf", ("x-F16.gguf", "x-Q2_0.gguf"))
    assert "fastest" in found.reason
    assert (asked.model.place, asked.reason) == ("x-F16.gguf", "it was asked for")


def test_the_origin_of_large_files_sees_no_token(client: HubClient, put: Path) -> None:
    write(put / "x.gguf", CASE)
    upload(client, put)

    config: ModelConfig = Remote.find(REQUEST).config()

    assert config.num_layers == 2
    assert {request.token for request in client.hub.asked("/cdn/*")} == {""}
    assert {request.token for request in client.hub.asked("/org/name/resolve/*")} == {"hf_secret"}
