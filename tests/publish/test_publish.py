"""A model goes to the Hub whole, checked and with a card that tells the truth; or not at all."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from nanochat import checkpoint
from nanochat.config import config_to_dict
from nanochat.errors import ConfigError, FormatError, InputError, ModelNotFoundError, SaveError
from nanochat.export.formats import Choices, export_model
from nanochat.export.manifest import read_manifest, write_manifest
from nanochat.export.source import Source
from nanochat.lm import Model
from nanochat.publish.card import BEGIN, END, Evaluation, Metadata, update_card
from nanochat.publish.front_matter import read_front_matter
from nanochat.publish.measure import run_examples
from nanochat.publish.options import Options, require_publishable
from nanochat.publish.publish import Published, publish
from nanochat.publish.replaced import stale_files
from nanochat.publish.staging import open_original, stage
from nanochat.publish.training_log import Training, read_training
from nanochat.publish.upload import Present
from nanochat.saving import save_model
from tests.export import foreign_ggufs
from tests.export.sources import random_source
from tests.zoo.hub_state import FOREVER, Hub

REPO = "org/name"
QUICK = Options(backends=["reference"], prompt="fn main() {")


@pytest.fixture(scope="module")
def source() -> Source:
    # Short texts, because each push writes four of them on the reference.
    return random_source(context_length=24)


@pytest.fixture
def model(source: Source, tmp_path: Path) -> Path:
    save_model(tmp_path / "mine", source)
    return tmp_path / "mine"


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def fields(card: str) -> dict[str, object]:
    return {key: value.plain for key, value in read_front_matter(card, where="card").items()}


def push(model: Path | Source, options: Options = QUICK) -> Published:
    (published,) = publish(model, REPO, options)
    return published


def test_a_model_directory_goes_to_a_new_repository_and_comes_back(hub: Hub, model: Path) -> None:
    (model / "diary.txt").write_text("mine alone")
    (model / "recipe.json").write_text(json.dumps({"steps": 5, "matrix_rate": 0.02}))
    before = content(model)

    published = push(model)

    there = hub.files(REPO)
    assert content(model) == before
    assert {n: d for n, d in there.items() if n not in (".gitattributes", "README.md")} == {
        n: d for n, d in before.items() if n != "diary.txt"
    }
    assert there["README.md"].decode() == published.card
    assert len(hub.subjects(REPO)) == 2
    assert published.commit_url.startswith(hub.url)
    again, first = (
        Model.from_pretrained(p, backend="reference", verify=True) for p in (REPO, model)
    )
    assert again.generate("fn main() {", max_tokens=8) == first.generate(
        "fn main() {", max_tokens=8
    )
    assert again.licence == "MIT"


def test_the_card_tells_what_the_model_is_and_what_was_measured(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", source)
    recipe = {"model": config_to_dict(source.config), "steps": 900, "batch_size": 8}
    lines = [
        {"step": 0, "recipe": recipe},
        {"step": 3, "held_out_bits_per_byte": 2.5},
        {"step": 7, "held_out_bits_per_byte": 1.5},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = Evaluation(metric="accuracy", value=0.25, dataset="org/test")
    options = replace(
        QUICK, datasets=["org/data"], languages=["en"], base_model="org/base", evaluations=[result]
    )

    card = push(tmp_path / "model", options).card

    assert json.loads(hub.files(REPO)["recipe.json"]) == {**recipe, "steps": 7}
    assert not (tmp_path / "model" / "recipe.json").exists()
    said = fields(card)
    assert said.pop("model-index")
    assert said == {
        "license": "mit",
        "language": ["en"],
        "datasets": ["org/data"],
        "base_model": ["org/base"],
        "tags": ["nanochat-ternary", "ternary", "1.58-bit"],
        "library_name": "nanochat-ternary",
        "pipeline_tag": "text-generation",
    }
    for text in (
        'nanochat.from_pretrained("org/name")',
        "nanochat generate org/name --prompt 'fn main() {' --temperature 0 --max-tokens ",
        "| reference (cpu) | ",
        "| steps | 7 |",
        "[recipe.json](recipe.json)",
        "| bits per byte | 1.5 | held-out text |",
        "| accuracy | 0.25 | org/test |",
        "`nanochat models push DIR org/name --backend reference`",
        "at most 24 tokens",
    ):
        assert text in card


def test_a_model_in_memory_goes_with_hashes_and_record(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    model = replace(source, licence="unknown", card=b"# My words\n")

    push(model, replace(QUICK, licence="Apache-2.0"))

    for name, data in hub.files(REPO).items():
        (tmp_path / name).write_bytes(data)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert "model.safetensors" in manifest.files
    assert manifest.licence == "Apache-2.0"
    assert manifest.golden == source.golden
    assert hub.files(REPO)["README.md"].decode().count("# My words\n") == 1


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_file_gets_a_manifest_beside_it(
    hub: Hub, source: Source, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / ("x.gguf" if kind == "gguf" else "x")
    export_model(source, out, kind=kind, choices=Choices(), verify=False)
    if kind == "onnx":
        (out / "nanochat.json").unlink()
        out = out / "model.onnx"

    push(out, replace(QUICK, licence="mit"))

    said = json.loads(hub.files(REPO)["nanochat.json"])
    assert said["licence"] == ("MIT" if kind == "gguf" else "mit")
    assert said["kind"] == kind
    assert out.name in said["files"]
    assert said["files"].keys() <= hub.files(REPO).keys()


def test_a_licence_that_was_not_known_is_staged_with_the_model_and_its_text(
    source: Source, tmp_path: Path
) -> None:
    save_model(tmp_path / "m", replace(source, licence="unknown"))
    (tmp_path / "m" / "LICENSE").write_text("Be nice.")
    before = content(tmp_path / "m")

    licence = require_publishable(tmp_path / "m", Options(licence="House-1.0"))
    stage(open_original(tmp_path / "m"), tmp_path / "staged", replace(source, licence=licence))

    assert (
        json.loads((tmp_path / "staged" / "nanochat.json").read_bytes())["licence"] == "House-1.0"
    )
    assert (tmp_path / "staged" / "LICENSE").read_text() == "Be nice."
    assert content(tmp_path / "m") == before


def test_what_is_not_staged_is_named(
    model: Path, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model / "diary.txt").write_text("mine alone")

    stage(open_original(model), tmp_path / "staged", source)

    assert "not uploaded, as nanochat.json does not name it: diary.txt" in caplog.text


def test_a_file_that_staging_damages_is_not_uploaded(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def truncate(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:-1])

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", truncate)

    with pytest.raises(FormatError, match=r"root/.*: \d+ bytes that are not"):
        push(model)

    assert not hub.repos


def test_the_lines_of_a_card_run_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    for name in names:
        monkeypatch.setenv(name, "hf_secret")

    (example,) = run_examples(
        {"python": f"import os; print([os.environ.get(n) for n in {names}])"}, tmp_path, REPO
    )

    assert example.output == "[None, None]\n"


def test_the_text_of_a_licence_goes_beside_a_file_and_into_every_repository(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    house = replace(source, licence="House-1.0")
    save_model(tmp_path / "m", house)
    out = tmp_path / "x.gguf"
    export_model(house, out, kind="gguf", choices=Choices(), verify=False)
    for folder in (tmp_path, tmp_path / "m"):
        (folder / "LICENSE").write_text("Be nice.")

    publish(tmp_path / "m", REPO, replace(QUICK, formats=["gguf"], separate=True))
    publish(out, "org/file", QUICK)

    for repo in (REPO, f"{REPO}-gguf", "org/file"):
        assert hub.files(repo)["LICENSE"] == b"Be nice."
        assert b"license_link: LICENSE\n" in hub.files(repo)["README.md"]


def test_all_formats_go_into_one_repository(hub: Hub, model: Path) -> None:
    before = content(model)

    card = push(model, replace(QUICK, formats=["gguf", "onnx"])).card

    there = set(hub.files(REPO))
    assert {
        "model.safetensors",
        "nanochat.json",
        "name-TQ2_0.gguf",
        "onnx/model.onnx",
        "onnx/nanochat.json",
    } <= there
    assert len(hub.subjects(REPO)) == 2
    assert content(model) == before
    listed = json.loads(hub.files(REPO)["nanochat.json"])["files"]
    assert not {name for name in listed if "gguf" in name or "onnx" in name}
    assert fields(card)["tags"] == ["nanochat-ternary", "ternary", "1.58-bit", "gguf", "onnx"]
    for row in (
        "| `model directory` |",
        "| `name-TQ2_0.gguf` | GGUF, qwen3 |",
        "| `onnx` | ONNX, ort |",
    ):
        assert row in card
    for part, backend in (("gguf", "reference"), ("onnx", "onnx")):
        assert (
            Model.from_pretrained(f"{REPO}:{part}", backend=backend).score("fn main() {").nats > 0
        )


def test_each_format_goes_into_its_own_repository(hub: Hub, model: Path) -> None:
    published = publish(
        model, REPO, replace(QUICK, formats=["gguf"], separate=True, base_model="a/b")
    )

    assert [one.repo for one in published] == [REPO, f"{REPO}-gguf"]
    assert sorted(set(hub.files(f"{REPO}-gguf")) - {".gitattributes"}) == [
        "README.md",
        "name-TQ2_0.gguf",
        "name-TQ2_0.gguf.parity.json",
        "nanochat.json",
    ]
    assert "name-TQ2_0.gguf" not in hub.files(REPO)
    said = fields(published[1].card)
    assert (said["base_model"], said["base_model_relation"]) == ([REPO], "quantized")
    assert fields(published[0].card)["base_model"] == ["a/b"]
    assert 'from_pretrained("org/name-gguf")' in published[1].card


def test_a_card_at_the_hub_is_updated_and_wins_over_the_local_one(
    hub: Hub, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = f"---\nthumbnail:  x.png\ntags: [mine]\n---\n# Theirs\n\n{BEGIN}\nobsolete\n{END}\n\nafter\n"
    hub.add(REPO, {"README.md": theirs.encode(), "photo.png": b"p"})
    (model / "README.md").write_text("# Local\n")

    card = push(model).card

    assert card.startswith("---\nthumbnail:  x.png\n")
    assert "\n# Theirs\n" in card
    assert card.endswith(f"{END}\n\nafter\n")
    assert "obsolete" not in card
    assert "# Local" not in card
    assert "which is kept" in caplog.text
    assert "hf upload org/name" in caplog.text
    assert hub.files(REPO)["photo.png"] == b"p"


def test_a_card_of_an_earlier_push_is_no_other_card(
    hub: Hub, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model / "README.md").write_text("# Local\n")
    metadata = Metadata(name="name", licence="MIT", library="nanochat-ternary")
    earlier = update_card("# Local\n", metadata, "obsolete", where="card")
    hub.add(REPO, {"README.md": earlier.encode()})

    push(model)

    assert hub.files(REPO)["README.md"].decode().count("# Local\n") == 1
    assert "which is kept" not in caplog.text


def test_shards_of_an_earlier_push_go_in_the_same_commit(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    checkpoint.save(
        old, source.config, source.weights, max_shard_bytes=100_000, others=source.tokenizer.files()
    )
    write_manifest(old, source, kind="nanochat")
    shards = sorted(path.name for path in old.glob("model*.safetensors*"))
    hub.add(REPO, {**content(old), "photo[1].png": b"p"})
    save_model(tmp_path / "new", source)

    published = push(tmp_path / "new")

    assert len(shards) > 2
    assert list(published.deleted) == shards
    assert not set(shards) & set(hub.files(REPO))
    assert hub.files(REPO)["photo[1].png"] == b"p"
    assert len(hub.subjects(REPO)) == 2


def test_weights_that_would_be_read_with_the_new_ones_are_refused(hub: Hub, model: Path) -> None:
    hub.add(REPO, {"model.safetensors.index.json": b"{}"})

    with pytest.raises(InputError, match=r"model.safetensors.index.json, .*hf repos delete-files"):
        push(model)

    assert list(hub.files(REPO)) == ["model.safetensors.index.json"]


@pytest.mark.parametrize(
    "content",
    [b'{"files": {"../x": 0, "/x": 0, "a/../x": 0}}', b"[1", b'{"files": 5}', b'{"files": [[]]}'],
)
def test_a_manifest_at_the_hub_cannot_name_files_elsewhere(content: bytes) -> None:
    present = Present(
        files={"x", "onnx/x", "onnx/nanochat.json"}, manifests={"onnx/nanochat.json": content}
    )

    assert stale_files(present, ["onnx/nanochat.json"]) == []


def test_what_an_earlier_push_left_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    files = {"old.gguf", "mlx/nanochat.json", "nanochat.json", "mlx/x"}
    manifests = {"nanochat.json": b'{"files": {}}', "mlx/nanochat.json": b'{"files": {"x": 0}}'}

    assert stale_files(Present(files=files, manifests=manifests), ["nanochat.json"]) == []

    assert "mlx of the repository is of an earlier push, and stays" in caplog.text
    assert "old.gguf of the repository is of an earlier push, and stays" in caplog.text


def test_a_pull_request_leaves_main_as_it_is(hub: Hub, model: Path) -> None:
    hub.add(REPO, {"README.md": b"# Theirs\n"})

    published = push(model, replace(QUICK, create_pr=True))

    assert hub.files(REPO) == {"README.md": b"# Theirs\n"}
    assert published.pull_request_url == f"{hub.url}/{REPO}/discussions/1"
    assert published.card.encode() == hub.files(REPO, "refs/pr/1")["README.md"]
    assert "# Theirs\n" in published.card


def test_a_dry_run_shows_everything_and_uploads_nothing(
    hub: Hub, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fault("/api/models/*", status=500, times=FOREVER)

    (published,) = publish(model, REPO, QUICK, dry_run=True)

    assert not hub.repos
    assert "what a new repository would get" in caplog.text
    assert published.files.keys() >= {"README.md", "model.safetensors", "nanochat.json"}
    assert published.commit_url == ""
    assert BEGIN in published.card


def damage(model: Path) -> None:
    path = model / "tokenizer_config.json"
    path.write_bytes(path.read_bytes() + b" ")


def swap(model: Path) -> None:
    """Give it the record of another model, whose files are hashed."""
    other = random_source(rope_theta=500.0, num_layers=1)
    manifest = json.loads((model / "nanochat.json").read_bytes())
    manifest["golden"] = json.loads(other.golden.to_json())
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
    model: Path, source: Source, tmp_path: Path
) -> None:
    (model / "more").mkdir()
    (model / "more" / "x").write_bytes(b"x")
    write_manifest(model, source, kind="nanochat")
    (model / "more").rename(tmp_path / "more")
    (model / "more").symlink_to(tmp_path / "more")

    with pytest.raises(FormatError, match=r"mine/more/x is a link to"):
        stage(open_original(model), tmp_path / "staged", source)


def test_a_link_inside_of_the_directory_is_followed(
    model: Path, source: Source, tmp_path: Path
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
    model: Path, source: Source, tmp_path: Path, shared: bool
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
    model: Path, source: Source, tmp_path: Path
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
    source: Source, tmp_path: Path, kind: str
) -> None:
    choices = Choices(runtime="transformers") if kind == "hf" else Choices()
    export_model(source, tmp_path / "x", kind=kind, choices=choices, verify=False)

    original = open_original(tmp_path / "x")

    assert original.kind == ("transformers" if kind == "hf" else kind)


def test_the_folder_of_a_gguf_file_is_refused_with_the_fix(model: Path) -> None:
    rename(model, "gguf")

    with pytest.raises(FormatError, match="pass that file"):
        open_original(model)


@pytest.mark.parametrize("name", ["model.onnx", "x.gguf", "inner/model.safetensors"])
def test_weights_that_nothing_would_run_are_refused(model: Path, source: Source, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"x")
    write_manifest(model, source, kind="nanochat")

    with pytest.raises(FormatError, match=rf"(names {name}, which is no part|are those of onnx)"):
        open_original(model)


@pytest.fixture
def graph(source: Source, tmp_path: Path) -> Path:
    export_model(source, tmp_path / "graph", kind="onnx", choices=Choices(), verify=False)
    return tmp_path / "graph"


def negate(path: Path) -> None:
    """Let a graph give the opposite of the logits that its weights have."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["inner" if name == "logits" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["inner"], ["logits"]))
    onnx.save(model, path)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("alone", [False, True], ids=["folder", "file"])
def test_a_graph_that_computes_something_else_is_refused_on_any_backend(
    hub: Hub, graph: Path, source: Source, backend: str, alone: bool
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
    ("options", "error", "message"),
    [
        (replace(QUICK, licence="Apache-2.0"), InputError, "but the files say MIT"),
        (replace(QUICK, formats=["tar"]), InputError, "choose some of gguf"),
        (replace(QUICK, formats=["gguf", "gguf"]), InputError, "each once"),
        (replace(QUICK, languages=["English"]), InputError, "ISO 639"),
        (replace(QUICK, base_model="base"), InputError, "base_model='base' is no repository"),
        (replace(QUICK, base_model=" "), InputError, "base_model=' ' is no repository"),
        (replace(QUICK, datasets=["a/b", ""]), InputError, "datasets: '' is no data set"),
        (replace(QUICK, datasets=["my notes"]), InputError, "datasets: 'my notes' is no data set"),
        (replace(QUICK, create_pr=True, branch="next"), InputError, "leave one of them out"),
        (replace(QUICK, create_pr=True), InputError, "leave create_pr out"),
        (replace(QUICK, prompt="two\nlines"), InputError, "on one line"),
        (replace(QUICK, prompt="word " * 64), InputError, "pass a shorter one"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    hub: Hub, model: Path, options: Options, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        push(model, options)

    assert not hub.repos


def test_a_model_without_a_licence_is_refused(hub: Hub, source: Source, tmp_path: Path) -> None:
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
    save_model(tmp_path / "m", random_source(num_streams=2, context_length=24))

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
    model: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        publish(model, REPO, replace(QUICK, formats=["gguf"], separate=True))

    assert content(model) == before
    assert "model.safetensors" in hub.files(REPO)


def test_the_log_of_another_model_is_not_told(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"step": 0, "recipe": {"model": {}, "steps": 9}})
    )

    assert read_training(tmp_path / "model", source.config) == Training()

    assert "another model" in caplog.text


def test_a_damaged_recipe_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{")

    with pytest.raises(FormatError, match=r"recipe.json: not valid JSON"):
        read_training(tmp_path, source.config)
