"""This file holds random BitNet models as Hugging Face transformers builds, runs and saves them."""

import json
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    BitNetQuantConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

with warnings.catch_warnings():
    # torch's compiler, which this module asks for, warns of torch's own past.
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers.integrations.bitnet import (
        AutoBitLinear,
        BitLinear,
        pack_weights,
        replace_with_bitnet_linear,
    )

Layout = Literal["bitlinear", "autobitlinear packed", "autobitlinear", "online"]
Family = Literal["bitnet", "llama", "qwen3"]

VOCABULARY = 96


def build(
    layout: Layout,
    *,
    family: Family = "bitnet",
    tied: bool = True,
    exact: bool = True,
    vocabulary: int = VOCABULARY,
    **fields: object,
) -> PreTrainedModel:
    """A model in float32 that computes as transformers does with a checkpoint of this layout.

    The scales are powers of 2 if `exact`, so that no format rounds them; `fields` are more of its configuration.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        **fields,
    }
    classes: dict[Family, tuple[Any, Any, dict[str, int]]] = {
        "bitnet": (BitNetForCausalLM, BitNetConfig, {}),
        "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 32}),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
    }
    model_class, config_class, more = classes[family]
    model: Any = model_class(config_class(**sizes, **more))
    kind = BitNetQuantConfig(
        linear_class="bitlinear" if layout == "bitlinear" else "autobitlinear",
        quantization_mode="online" if layout == "online" else "offline",
    )
    replace_with_bitnet_linear(model, ["lm_head"], kind)
    model.config.quantization_config = kind
    # The linears were made without memory.
    for module in model.modules():
        if isinstance(module, BitLinear | AutoBitLinear):
            weight = torch.randn(int(module.out_features), int(module.in_features))
            _fill(module, weight, exact=exact)
        elif "Norm" in type(module).__name__:
            module.weight.data = 1 + 0.1 * torch.randn(module.weight.shape)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.data = torch.randn(module.weight.shape)
    if not tied:
        model.lm_head.weight.data = torch.randn(model.lm_head.weight.shape)
    model.float().eval()
    return cast(PreTrainedModel, model)


def save(model: PreTrainedModel, layout: Layout, directory: Path, *, shard: str = "5GB") -> None:
    """Write a model as transformers does; packed as the published checkpoints are, if the layout says so."""
    model.save_pretrained(directory, max_shard_size=shard)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = model.config.quantization_config.to_dict()
    (directory / "config.json").write_text(json.dumps(config, default=str))
    if layout == "autobitlinear packed":
        for path in directory.glob("*.safetensors"):
            tensors = load_file(path)
            for key, weight in tensors.items():
                if "_proj.weight" in key and not key.endswith("scale"):
                    tensors[key] = pack_weights(weight.clone().to(torch.int8))
            save_file(tensors, path, metadata={"format": "pt"})


def rewrite(directory: Path, **changes: object) -> None:
    """Replace fields of ``config.json``; None deletes one."""
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: v for name, v in fields.items() if v is not None}))


def replace_tensors(directory: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Replace tensors of ``model.safetensors``; None deletes one."""
    path = directory / "model.safetensors"
    changed = {**load_file(path), **tensors}
    save_file({key: value for key, value in changed.items() if value is not None}, path)


def logits(model: PreTrainedModel, ids: list[int]) -> NDArray[np.float32]:
    """What transformers computes, without compiling its rounding."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        result: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return result


def greedy(model: PreTrainedModel, ids: list[int], num_tokens: int) -> list[int]:
    """The most probable tokens, one after the other."""
    for _ in range(num_tokens):
        ids = [*ids, int(logits(model, ids)[-1].argmax())]
    return ids[-num_tokens:]


def _fill(module: Any, weight: torch.Tensor, *, exact: bool) -> None:
    """Give a linear weights of its layout, as training or packing would."""
    scale = torch.tensor(0.125) if exact else weight.abs().mean() / 7
    codes = (weight / weight.abs().mean()).round().clamp(-1, 1)
    if isinstance(module, BitLinear):
        module.dtype = torch.float32
        module.weight.data = pack_weights(codes.to(torch.int8))
        module.weight_scale.data = (1 / scale).reshape(1)
    elif module.online_quant:
        # The mean magnitude of what is rounded becomes the scale.
        module.weight = torch.nn.Parameter(weight / weight.abs().mean() * scale)
    else:
        module.weight = torch.nn.Parameter(codes)
        module.weight_scale = scale.reshape(1)
