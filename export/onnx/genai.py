"""This file holds the folder that onnxruntime-genai loads.

The graph is the one of `nanochat.export.onnx.write`, whose inputs and outputs have its names; beside it stand its
configuration and the tokenizer. ONNX Runtime itself, and this package, run ``model.onnx`` of the same folder.
"""

import json
from pathlib import Path

from nanochat.bundle import CARD, Bundle
from nanochat.export.format import Progress
from nanochat.export.layouts import GRAPH
from nanochat.export.onnx.standard import SESSION_CONFIG
from nanochat.export.onnx.state import memory_shapes, present_name
from nanochat.export.onnx.write import Target, export_onnx
from nanochat.files import atomic_directory
from nanochat.slots import slots

__all__ = ["genai_config", "write_genai"]

# Keys of the configuration, by the names of the inputs whose layer is left open.
_MEMORY = {
    "past_key_values.%d.key": "key",
    "past_key_values.%d.value": "value",
    "past.%d.conv": "conv",
    "past.%d.recurrent": "recurrent",
}


def write_genai(
    folder: Path, bundle: Bundle, *, target: Target = "ort", progress: Progress | None = None
) -> None:
    """Write a model for onnxruntime-genai, and for ONNX Runtime; see `nanochat.export.onnx.write.export_onnx`."""
    files = dict(bundle.tokenizer.files())
    files["genai_config.json"] = _json(genai_config(bundle, target))
    files["generation_config.json"] = _json(dict(bundle.generation))
    if bundle.tokenizer.chat_template:
        files["chat_template.jinja"] = bundle.tokenizer.chat_template.encode()
    if bundle.card:
        files[CARD] = bundle.card
    with atomic_directory(folder) as new:
        export_onnx(bundle, new / GRAPH, target=target, progress=progress)
        for name, content in files.items():
            (new / name).write_bytes(content)


def genai_config(bundle: Bundle, target: Target) -> dict[str, object]:
    """Content of ``genai_config.json``."""
    config, generation = bundle.config, bundle.generation
    inputs: dict[str, str] = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    outputs: dict[str, str] = {"logits": "logits"}
    for name in memory_shapes(slots(config)):
        first, _, last = name.split(".")
        pattern = f"{first}.%d.{last}"
        inputs[f"past_{_MEMORY[pattern]}_names"] = pattern
        outputs[f"present_{_MEMORY[pattern]}_names"] = present_name(pattern)
    options: dict[str, object] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if target == "standard":
        options |= SESSION_CONFIG
    ends = generation.get("eos_token_id", sorted(bundle.tokenizer.stop_ids))
    tokens = {
        "bos_token_id": bundle.tokenizer.bos,
        "eos_token_id": ends,
        "pad_token_id": bundle.tokenizer.pad,
    }
    return {
        "model": {
            **{key: token for key, token in tokens.items() if token not in (None, [])},
            "context_length": config.context_length,
            "decoder": {
                "session_options": options,
                "filename": GRAPH,
                "head_size": config.head_dim,
                "hidden_size": config.width,
                "inputs": inputs,
                "outputs": outputs,
                "num_attention_heads": config.num_heads,
                "num_hidden_layers": len([s for s in slots(config) if s.kind != "conv"]),
                "num_key_value_heads": config.num_kv_heads,
            },
            "type": "decoder",
            "vocab_size": config.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": config.context_length,
            "past_present_share_buffer": target == "ort",
        },
    }


def _json(content: dict[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
