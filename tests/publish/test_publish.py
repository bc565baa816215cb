"""A model goes to the Hub whole, checked and with a card that tells the truth; or not at all."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat import checkpoint
from nanochat.bundle import Bundle
from nanochat.config import config_to_dict
from nanochat.errors import FormatError, InputError
from nanochat.export.directory import save_model
from nanochat.export.export import export_model
from nanochat.lm import Model
from nanochat.proof.manifest import read_manifest, write_manifest
from nanochat.publish.card import BEGIN, END, update_card
from nanochat.publish.measure import run_examples
from nanochat.publish.metadata import Metadata
from nanochat.publish.options import Evaluation, PushOptions
from nanochat.publish.push import push_model
from nanochat.publish.stage import open_original, require_publishable, stage
from nanochat.publish.upload import Present, stale_files
from nanochat.text.front_matter import read_metadata
from tests.publish.publishing import QUICK, REPO, content, push
from tests.zoo.hub_state import FOREVER, Hub


def fields(card: str) -> dict[str, object]:
    return read_metadata(card, where="card")


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
    hub: Hub, source: Bundle, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", source)
    recipe = {"model": config_to_dict(source.config), "steps": 900, "batch_size": 8}
    lines = [
        {"step": 0, "recipe": recipe},
        {"step": 3, "held_out_bits_per_byte": 2.5},
        {"step": 7, "held_out_bits_per_byte": 1.5},
        # Of that evaluation, so the run has ended with it.
        {"step": 7, "anomaly": "dead streams", "because": "the streams are equal"},
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
    hub: Hub, source: Bundle, tmp_path: Path
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
    hub: Hub, source: Bundle, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / ("x.gguf" if kind == "gguf" else "x")
    export_model(source, out, kind=kind, verify=False)
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
    source: Bundle, tmp_path: Path
) -> None:
    save_model(tmp_path / "m", replace(source, licence="unknown"))
    (tmp_path / "m" / "LICENSE").write_text("Be nice.")
    before = content(tmp_path / "m")
    original = open_original(tmp_path / "m")

    licence = require_publishable(original, PushOptions(licence="House-1.0"))
    stage(original, tmp_path / "staged", replace(source, licence=licence))

    assert (
        json.loads((tmp_path / "staged" / "nanochat.json").read_bytes())["licence"] == "House-1.0"
    )
    assert (tmp_path / "staged" / "LICENSE").read_text() == "Be nice."
    assert content(tmp_path / "m") == before


def test_an_extra_file_may_lie_anywhere(model: Path, source: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Read me.")

    stage(open_original(model), tmp_path / "staged", source, extra_files=[tmp_path / "notes.txt"])

    assert (tmp_path / "staged" / "notes.txt").read_text() == "Read me."


def test_what_is_not_staged_is_named(
    model: Path, source: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
    hub: Hub, source: Bundle, tmp_path: Path
) -> None:
    house = replace(source, licence="House-1.0")
    save_model(tmp_path / "m", house)
    out = tmp_path / "x.gguf"
    export_model(house, out, kind="gguf", verify=False)
    for folder in (tmp_path, tmp_path / "m"):
        (folder / "LICENSE").write_text("Be nice.")

    push_model(tmp_path / "m", REPO, replace(QUICK, formats=["gguf"], separate=True))
    push_model(out, "org/file", QUICK)

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
    published = push_model(
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

    assert card.startswith("---\nthumbnail: x.png\n")
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
    hub: Hub, source: Bundle, tmp_path: Path
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

    assert stale_files(REPO, present, ["onnx/nanochat.json"]) == []


def test_what_an_earlier_push_left_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    files = {"old.gguf", "mlx/nanochat.json", "nanochat.json", "mlx/x"}
    manifests = {"nanochat.json": b'{"files": {}}', "mlx/nanochat.json": b'{"files": {"x": 0}}'}

    assert stale_files(REPO, Present(files=files, manifests=manifests), ["nanochat.json"]) == []

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

    (published,) = push_model(model, REPO, QUICK, dry_run=True)

    assert not hub.repos
    assert "what a new repository would get" in caplog.text
    assert published.files.keys() >= {"README.md", "model.safetensors", "nanochat.json"}
    assert published.commit_url == ""
    assert BEGIN in published.card
