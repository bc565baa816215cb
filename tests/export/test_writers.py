"""Folders are read as the current versions of the programs that write them leave them on a disk."""

import json
import logging
from pathlib import Path

import mlx_lm
import numpy as np
import pytest
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from nanochat.errors import FormatError
from nanochat.export.formats import load
from nanochat.weights import named_leaves
from nanochat.zoo.hub import locate
from tests.core.foreign_tokenizers import llama_3
from tests.export.foreign_models import Layout, build, rewrite, save
from tests.zoo.hub_client import HubClient

INDEX = "model.safetensors.index.json"
VOCABULARY = 308


def written(folder: Path, layout: Layout = "autobitlinear packed", *, shard: str = "5GB") -> Path:
    """A BitNet model and its tokenizer, as transformers saves them."""
    save(build(layout, vocabulary=VOCABULARY), layout, folder, shard=shard)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # the library's
        tokenizer_object=llama_3(), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    tokenizer.save_pretrained(folder)
    return folder


def require_same(folder: Path, expected: Path) -> None:
    ours, theirs = load(folder), load(expected)

    assert ours.tokenizer.encode("to be or not") == theirs.tokenizer.encode("to be or not")
    assert ours.tokenizer.stop_ids == theirs.tokenizer.stop_ids
    for (name, leaf), (_, other) in zip(
        named_leaves(ours.weights), named_leaves(theirs.weights), strict=True
    ):
        for field, values in vars(leaf).items():
            np.testing.assert_array_equal(values, getattr(other, field), err_msg=f"{name}.{field}")


def test_a_tokenizer_that_transformers_saves_without_a_limit_is_read(tmp_path: Path) -> None:
    written(tmp_path)

    bundle = load(tmp_path)

    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == int(1e30)
    assert bundle.tokenizer.bos == llama_3().token_to_id("<|begin_of_text|>")
    assert bundle.config.context_length == 64


@pytest.mark.parametrize("layout", ["bitlinear", "autobitlinear packed"])
def test_one_file_that_mlx_lm_writes_beside_its_index_is_read(
    tmp_path: Path, layout: Layout
) -> None:
    written(tmp_path / "model", layout)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["quantization_config"]["modules_to_not_convert"]
    rewrite(tmp_path / "model", **config)

    mlx_lm.convert(str(tmp_path / "model"), str(tmp_path / "mlx"))

    names = {path.name for path in (tmp_path / "mlx").iterdir()}
    assert {"model.safetensors", INDEX} <= names
    require_same(tmp_path / "mlx", tmp_path / "model")


def in_shards_of_other_names(folder: Path) -> list[str]:
    """Write a model's file anew in several, as the Hub's library names them where it is asked to."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    pattern = "pytorch_model{suffix}.safetensors"
    save_torch_state_dict(tensors, folder, filename_pattern=pattern, max_shard_size=20_000)
    (folder / "pytorch_model.safetensors.index.json").rename(folder / INDEX)
    return sorted(path.name for path in folder.glob("pytorch_model*"))


def test_shards_of_any_name_are_read(tmp_path: Path) -> None:
    written(tmp_path / "whole")
    written(tmp_path / "parts")

    names = in_shards_of_other_names(tmp_path / "parts")

    assert len(names) > 1
    require_same(tmp_path / "parts", tmp_path / "whole")


def test_a_tensor_that_the_index_does_not_know_is_one_of_the_model_s(tmp_path: Path) -> None:
    written(tmp_path / "whole")
    written(tmp_path / "parts", shard="20KB")
    index = json.loads((tmp_path / "parts" / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (tmp_path / "parts" / INDEX).write_text(json.dumps(index))

    require_same(tmp_path / "parts", tmp_path / "whole")


def test_a_tensor_that_only_the_index_knows_is_missed_if_the_model_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "whole")
    written(tmp_path / "parts", shard="20KB")
    index = json.loads((tmp_path / "parts" / INDEX).read_text())
    # Heads that predict further tokens, say, which a converter has left out.
    index["weight_map"]["mtp.fc.weight"] = index["weight_map"]["model.norm.weight"]
    (tmp_path / "parts" / INDEX).write_text(json.dumps(index))

    with caplog.at_level(logging.WARNING):
        require_same(tmp_path / "parts", tmp_path / "whole")

    assert f"{INDEX} places 'mtp.fc.weight' in model-000" in caplog.text


def test_an_index_that_transformers_left_behind_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "expected")
    written(tmp_path / "model", shard="20KB")
    written(tmp_path / "model")

    with caplog.at_level(logging.WARNING):
        require_same(tmp_path / "model", tmp_path / "expected")

    assert (tmp_path / "model" / INDEX).exists()
    assert f"{INDEX} is of a model that is not there" in caplog.text


def test_a_file_beside_shards_that_are_there_could_be_another_model(tmp_path: Path) -> None:
    # transformers reads the file, which is the older one here, and mlx-lm all of them.
    written(tmp_path)
    written(tmp_path, shard="20KB")

    with pytest.raises(FormatError, match=r"holds both model\.safetensors and model-0000"):
        load(tmp_path)


def put(client: HubClient, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    client.hub.add("org/name", files)


@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
def test_of_the_hub_the_files_are_fetched_that_an_index_names(
    hub_client: HubClient, tmp_path: Path, offline: bool
) -> None:
    written(tmp_path / "whole")
    written(tmp_path / "parts")
    names = in_shards_of_other_names(tmp_path / "parts")
    for other in ("model-00001-of-00002.safetensors", "adapter.safetensors"):
        (tmp_path / "parts" / other).write_bytes(b"of no use")
    put(hub_client, tmp_path / "parts")

    path = locate("org/name").path
    hub_client.set_offline(offline)
    path = locate("org/name").path

    assert sorted(file.name for file in path.glob("*.safetensors")) == names
    require_same(path, tmp_path / "whole")


def test_a_repository_that_lacks_what_its_index_names_is_refused(
    hub_client: HubClient, tmp_path: Path
) -> None:
    written(tmp_path)
    names = in_shards_of_other_names(tmp_path)
    (tmp_path / names[-1]).unlink()
    put(hub_client, tmp_path)

    with pytest.raises(FormatError, match=f"org/name lacks {names[-1]}, which another of its"):
        locate("org/name")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "run.py"])
def test_no_index_of_the_hub_leads_out_of_its_folder_or_to_other_kinds_of_file(
    hub_client: HubClient, tmp_path: Path, name: str
) -> None:
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "run.py").write_text("raise SystemExit")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    put(hub_client, tmp_path)

    with pytest.raises(FormatError, match=r"must be the name of a \.safetensors file beside it"):
        locate("org/name")

    assert not list(hub_client.cache.rglob("run.py"))


def test_a_folder_that_the_hub_s_client_fetched_is_read(
    hub_client: HubClient, tmp_path: Path
) -> None:
    written(tmp_path / "model")
    put(hub_client, tmp_path / "model")
    here = tmp_path / "here"

    snapshot_download("org/name", local_dir=here)
    # What an interrupted download leaves.
    (here / ".cache" / "huggingface" / "download" / "model.safetensors.incomplete").write_bytes(
        b"x"
    )

    assert (here / ".cache" / "huggingface").is_dir()
    assert locate(str(here)).path == here
    require_same(here, tmp_path / "model")


def test_a_variant_of_transformers_is_read_when_it_is_renamed_as_the_message_says(
    tmp_path: Path,
) -> None:
    written(tmp_path / "expected", "autobitlinear")
    written(tmp_path / "model", "autobitlinear")
    (tmp_path / "model" / "model.safetensors").unlink()
    config = (tmp_path / "model" / "config.json").read_bytes()
    model = build("autobitlinear", vocabulary=VOCABULARY)
    model.save_pretrained(tmp_path / "model", variant="fp16")
    (tmp_path / "model" / "config.json").write_bytes(config)
    (name,) = (path.name for path in (tmp_path / "model").glob("*.safetensors"))

    with pytest.raises(FormatError, match=f"names {name}: .* rename it to model.safetensors"):
        load(tmp_path / "model")

    (tmp_path / "model" / name).rename(tmp_path / "model" / "model.safetensors")
    require_same(tmp_path / "model", tmp_path / "expected")
