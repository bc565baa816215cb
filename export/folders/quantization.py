"""This file holds what ``quantization_config`` says of a BitNet model for Hugging Face transformers.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/quantizers, version 5.23.
"""

from typing import Literal

from nanochat.errors import ConfigError

__all__ = ["StoredScale", "read_quantization"]

# What stands beside a linear's weight: the inverse of the scale, the scale, or nothing.
StoredScale = Literal["inverse", "direct", "none"]

# Names of modules that are no ternary linears, which alone may be left as they are.
_NOT_TERNARY = {"lm_head", "model.embed_tokens", "embed_tokens", "model.norm", "norm"}


def read_quantization(settings: object) -> StoredScale:
    """What stands beside the weights, by ``quantization_config``; nothing where they are rounded as they are read."""
    if not isinstance(settings, dict) or settings.get("quant_method") != "bitnet":
        raise ConfigError(
            f'quantization_config is {settings!r:.80}: must have "quant_method": "bitnet", without which the linears '
            "are not ternary; pass a ternary model"
        )
    if settings.get("use_rms_norm"):
        raise ConfigError("use_rms_norm is true: this package has no norm inside of linears")
    left = settings.get("modules_to_not_convert")
    if left is not None:
        named = left if isinstance(left, list) else [left]
        names = {str(name).removesuffix(".weight") for name in named}
        if not isinstance(left, list) or not names <= _NOT_TERNARY:
            raise ConfigError(
                f"modules_to_not_convert is {left!r:.200}: in this package every linear is ternary"
            )
        if "lm_head" not in names:
            raise ConfigError(
                f"modules_to_not_convert is {left!r:.200}, without lm_head: this package has no ternary head"
            )
    kind = settings.get("linear_class", "bitlinear")
    mode = settings.get("quantization_mode", "offline")
    if kind not in ("bitlinear", "autobitlinear") or mode not in ("offline", "online"):
        raise ConfigError(
            f"linear_class is {kind!r:.80} and quantization_mode {mode!r:.80}: must be bitlinear or autobitlinear, "
            "and offline or online"
        )
    if kind == "bitlinear":
        return "inverse"
    return "none" if mode == "online" else "direct"
