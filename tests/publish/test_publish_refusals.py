"""What is not what it says, or cannot be published, is refused before anything leaves; links lead nowhere else."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from nanochat.bundle import Bundle
from nanochat.config import config_to_dict
from nanochat.errors import (
    BackendError,
    ConfigError,
    FormatError,
    InputError,
    ModelNotFoundError,
    SaveError,
)
from nanochat.export.directory import save_model
from nanochat.export.export import export_model
from nanochat.export.formats import format_named, load
from nanochat.export.onnx.digest import seal
from nanochat.proof.golden import record
from nanochat.proof.manifest import write_manifest
from nanochat.publish.options import PushOptions
from nanochat.publish.push import push_model
from nanochat.publish.stage import open_original, stage
from nanochat.publish.training_log import Training, read_training
from tests.export import foreign_ggufs
from tests.parity.random_models import random_bundle
from tests.publish.publishing import QUICK, REPO, content, push
from tests.zoo.hub_state import FOREVER, Hub


def damage(model: Path) -> None:
    path = model / "tokenizer_config.json"
    path.write_bytes(path.read_bytes() + b" ")


def swap(model: Path) -> None:
    """Give it the record of another model, whose files are hashed."""
    other = random_bundle(rope_theta=500.0, num_layers=1)
    manifest = json.loads((model / "nanochat.json").read_bytes())
    manifest["golden"] = record(other).to_dict()
    (model / "nanochat.json").write_text(json.dumps(manifest))


def disagree(model: Path) -> None:
    """Change what the record says that the second layer computes."""
    manifest = json.loads((model / "nanochat.json").read_bytes())
    manifest["golden"]["layers"][1] = [-x for x in manifest["golden"]["layers"][1]]
    (model / "nanochat.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage, r"mine/tokenizer_config.json: \d+ bytes that are not .*truncated or was changed"),
        (lambda model: (model / "nanochat.json").unlink(), r"no nanochat.json.*save_pretrained"),
        (
            lambda model: (model / "model.safetensors").unlink(),
            r"mine/model.safetensors: No such file",
        ),
        (swap, "not as it was when the golden record was made"),
        (disagree, "layer 1 is the first that differs"),
    ],
)
def test_a_model_that_is_not_what_was_written_is_refused(
    hub: Hub, model: Path, spoil: object, message: str
) -> None:
    assert callable(spoil)
    spoil(model)
    before = content(model)

    with pytest.raises(FormatError, match=message):
        push(model)

    assert not hub.repos
    assert content(model) == before


@pytest.mark.parametrize("name", ["NOTICE", "LICENSE", "README.md", "recipe.json", "nanochat.json"])
def test_a_link_to_a_file_elsewhere_is_not_uploaded(
    hub: Hub, model: Path, tmp_path: Path, name: str
) -> None:
    there = model / name
    secret = tmp_path / "secret"
    secret.write_bytes(there.read_bytes() if there.exists() else b'{"a": "secret"}')
    there.unlink(missing_ok=True)
    there.symlink_to("../secret")

    with pytest.raises(FormatError, match=rf"mine/{name} is a link to .*secret.* with a copy"):
        push(model)

    assert not hub.repos


def test_a_link_to_a_folder_elsewhere_is_not_uploaded(
    model: Path, source: Bundle, tmp_path: Path
) -> None:
    (model / "more").mkdir()
    (model / "more" / "x").write_bytes(b"x")
    write_manifest(model, source, kind="nanochat")
    (model / "more").rename(tmp_path / "more")
    (model / "more").symlink_to(tmp_path / "more")

    with pytest.raises(FormatError, match=r"mine/more/x is a link to"):
        stage(open_original(model), tmp_path / "staged", source)


def test_a_link_inside_of_the_directory_is_followed(
    model: Path, source: Bundle, tmp_path: Path
) -> None:
    (model / "text").write_text("Be nice.")
    (model / "NOTICE").symlink_to("text")
    (tmp_path / "latest").symlink_to("mine")

    stage(open_original(tmp_path / "latest"), tmp_path / "staged", source)

    assert (tmp_path / "staged" / "NOTICE").read_text() == "Be nice."


def cached(model: Path, cache: Path, *, shared: bool) -> Path:
    """A snapshot as the Hub's client keeps it."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, (name, data) in enumerate(content(model).items()):
        blob = repository / "blobs" / str(number)
        if shared:
            (cache / "blobs" / "ab").mkdir(parents=True, exist_ok=True)
            (cache / "blobs" / "ab" / str(number)).write_bytes(data)
            blob.symlink_to(f"../../blobs/ab/{number}")
        else:
            blob.write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_snapshot_of_the_hubs_cache_is_staged(
    model: Path, source: Bundle, tmp_path: Path, shared: bool
) -> None:
    (model / "README.md").write_text("# Mine\n")
    snapshot = cached(model, tmp_path / "cache", shared=shared)

    original = open_original(snapshot)
    stage(original, tmp_path / "staged", source)

    assert original.card == b"# Mine\n"
    assert content(tmp_path / "staged") == {
        name: data for name, data in content(model).items() if name != "README.md"
    }


def test_a_snapshot_may_not_lead_to_another_repository_of_the_cache(
    model: Path, source: Bundle, tmp_path: Path
) -> None:
    snapshot = cached(model, tmp_path / "cache", shared=True)
    other = tmp_path / "cache" / "models--org--private" / "blobs" / "0"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"secret")
    (tmp_path / "cache" / "blobs" / "ab" / "secret").write_bytes(b"secret")

    for place in ("../../../models--org--private/blobs/0", "../../../blobs/ab/secret"):
        (snapshot / "NOTICE").unlink(missing_ok=True)
        (snapshot / "NOTICE").symlink_to(place)
        with pytest.raises(FormatError, match=r"NOTICE is a link to"):
            stage(open_original(snapshot), tmp_path / "staged", source)
        shutil.rmtree(tmp_path / "staged")


def rename(model: Path, kind: str) -> None:
    """Call a folder another kind."""
    manifest = json.loads((model / "nanochat.json").read_bytes())
    (model / "nanochat.json").write_text(json.dumps({**manifest, "kind": kind}))


@pytest.mark.parametrize("kind", ["foo", "web", "onnx", "mlx", "transformers"])
def test_a_directory_that_is_not_what_it_is_called_is_refused(
    hub: Hub, model: Path, kind: str
) -> None:
    rename(model, kind)

    with pytest.raises(FormatError, match=rf"the kind '{kind}', but its files are those of nano"):
        push(model)

    assert not hub.repos


@pytest.mark.parametrize("kind", ["nanochat", "web"])
def test_a_graph_that_is_not_what_it_is_called_is_refused(graph: Path, kind: str) -> None:
    rename(graph, kind)

    with pytest.raises(FormatError, match=f"the kind '{kind}', but its files are those of onnx"):
        open_original(graph)


@pytest.mark.parametrize("kind", ["onnx", "mlx", "hf", "web"])
def test_every_exported_folder_is_taken_for_what_it_is(
    source: Bundle, tmp_path: Path, kind: str
) -> None:
    form = format_named(kind)
    options = form.published or form.choose()
    export_model(source, tmp_path / "x", kind=kind, options=options, verify=False)

    original = open_original(tmp_path / "x")

    assert original.form is form


def test_the_folder_of_a_gguf_file_is_refused_with_the_fix(model: Path) -> None:
    rename(model, "gguf")

    with pytest.raises(FormatError, match="pass that file"):
        open_original(model)


@pytest.mark.parametrize("name", ["model.onnx", "x.gguf", "inner/model.safetensors"])
def test_weights_that_nothing_would_run_are_refused(model: Path, source: Bundle, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"x")
    write_manifest(model, source, kind="nanochat")

    with pytest.raises(FormatError, match=rf"(names {name}, which is no part|are those of onnx)"):
        open_original(model)


@pytest.fixture
def graph(source: Bundle, tmp_path: Path) -> Path:
    export_model(source, tmp_path / "graph", kind="onnx", verify=False)
    return tmp_path / "graph"


def negate(path: Path) -> None:
    """Let a graph give the opposite of the logits that its weights have."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["inner" if name == "logits" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["inner"], ["logits"]))
    golden = load(path).golden
    assert golden is not None
    seal(model, golden)
    onnx.save(model, path)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("alone", [False, True], ids=["folder", "file"])
def test_a_graph_that_computes_something_else_is_refused_on_any_backend(
    hub: Hub, graph: Path, source: Bundle, backend: str, alone: bool
) -> None:
    negate(graph / "model.onnx")
    write_manifest(graph, source, kind="onnx")
    if alone:
        (graph / "nanochat.json").unlink()
    path = graph / "model.onnx" if alone else graph

    with pytest.raises(FormatError, match="the head is the first that differs"):
        push(path, replace(QUICK, backends=[backend], licence="MIT"))

    assert not hub.repos


def test_a_file_without_a_golden_record_is_refused(hub: Hub, tmp_path: Path) -> None:
    path = foreign_ggufs.write(tmp_path / "foreign.gguf", foreign_ggufs.Case(architecture="llama"))

    with pytest.raises(FormatError, match=r"no golden record.*save_pretrained"):
        push(path, replace(QUICK, licence="MIT"))

    assert not hub.repos


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(QUICK, licence="Apache-2.0"), "but the files say MIT"),
        (replace(QUICK, create_pr=True), "leave create_pr out"),
        (replace(QUICK, prompt="word " * 64), "pass a shorter one"),
    ],
)
def test_an_option_that_does_not_go_with_the_model_is_refused(
    hub: Hub, model: Path, options: PushOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        push(model, options)

    assert not hub.repos


def test_a_backend_that_cannot_run_here_is_refused_before_the_work(hub: Hub, model: Path) -> None:
    with pytest.raises(BackendError, match="abacus"):
        push(model, replace(QUICK, backends=["reference", "abacus"]))

    assert not hub.requests


def test_a_model_without_a_licence_is_refused(hub: Hub, source: Bundle, tmp_path: Path) -> None:
    save_model(tmp_path / "m", replace(source, licence="unknown"))

    for model in (tmp_path / "m", replace(source, licence="unknown")):
        with pytest.raises(InputError, match="nothing says which licence"):
            push(model)
        with pytest.raises(InputError, match="LICENSE"):
            push(model, replace(QUICK, licence="House-1.0"))

    assert not hub.repos


def test_what_cannot_be_exported_is_refused_before_anything_is_uploaded(
    hub: Hub, tmp_path: Path
) -> None:
    save_model(tmp_path / "m", random_bundle(num_streams=2, context_length=24))

    with pytest.raises(ConfigError, match="num_streams=2"):
        push(tmp_path / "m", replace(QUICK, formats=["mlx"]))

    assert not hub.repos


def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such model"):
        push(tmp_path / "nothing")

    assert not hub.requests


@pytest.mark.parametrize(
    ("card", "error", "message"),
    [
        (b"---\nlicense: apache-2.0\n---\n", InputError, "correct the one that is wrong"),
        (
            b"---\nlicense: [mit\n---\n",
            FormatError,
            "README.md of org/name: its front matter is no YAML",
        ),
        (b"\xff\xfe", FormatError, "no text in UTF-8"),
    ],
)
def test_a_card_at_the_hub_that_cannot_be_updated_is_refused(
    hub: Hub, model: Path, card: bytes, error: type[Exception], message: str
) -> None:
    hub.add(REPO, {"README.md": card})

    with pytest.raises(error, match=message):
        push(model)

    assert hub.files(REPO) == {"README.md": card}


def test_lines_that_do_not_run_are_not_uploaded(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules" / "nanochat").mkdir(parents=True)
    (tmp_path / "modules" / "nanochat" / "__init__.py").write_text(
        "raise ImportError('a broken one')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))

    with pytest.raises(FormatError, match=r"do not run \(ImportError: a broken one\)"):
        push(model)

    assert not hub.repos


def test_a_full_disk_is_said_and_leaves_nothing(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = content(model)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", refuse)

    with pytest.raises(SaveError, match=r"No space left on device; free space, or set TMPDIR"):
        push(model)

    assert content(model) == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert not hub.repos


def test_another_disk_gets_copies(
    model: Path, source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)

    stage(open_original(model), tmp_path / "staged", source)

    assert content(tmp_path / "staged") == content(model)


def test_a_refusal_of_the_second_repository_names_the_first(hub: Hub, model: Path) -> None:
    before = content(model)
    hub.fault("*-gguf/commit/*", method="POST", status=403, times=FOREVER)

    with pytest.raises(SaveError, match=r"hf auth login.*uploaded before that: org/name$"):
        push_model(model, REPO, replace(QUICK, formats=["gguf"], separate=True))

    assert content(model) == before
    assert "model.safetensors" in hub.files(REPO)


def test_the_log_of_another_model_is_not_told(
    source: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"step": 0, "recipe": {"model": {}, "steps": 9}})
    )

    assert read_training(tmp_path / "model", source.config) == Training()

    assert "another model" in caplog.text


def test_the_log_of_a_run_that_goes_on_is_not_told(
    source: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model").mkdir()
    lines = [
        {"step": 0, "recipe": {"model": config_to_dict(source.config), "steps": 9}},
        {"step": 9, "held_out_bits_per_byte": 1.5},
        {"step": 10, "loss": 1.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert read_training(tmp_path / "model", source.config) == Training()

    assert "has not ended" in caplog.text


def test_a_damaged_recipe_is_refused(source: Bundle, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{")

    with pytest.raises(FormatError, match=r"recipe.json: not valid JSON"):
        read_training(tmp_path, source.config)
