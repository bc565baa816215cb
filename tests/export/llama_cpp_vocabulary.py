"""This file holds what llama.cpp knows of a file's tokenizer, for tests of the tokens that its users get."""

import ctypes
from pathlib import Path

from nanochat.export.gguf.llama_cpp import LlamaCpp
from nanochat.text.codec import check_text


class LlamaCppVocabulary(LlamaCpp):
    """A model with its special tokens, -1 for one that the file does not name, and its chat template."""

    def __init__(self, path: Path, *, threads: int | None = None, context: int) -> None:
        super().__init__(path, threads=threads, context=context)
        functions = self._library
        self.bos = functions.llama_vocab_bos(self._vocabulary)
        self.eos = functions.llama_vocab_eos(self._vocabulary)
        self.eot = functions.llama_vocab_eot(self._vocabulary)
        self.pad = functions.llama_vocab_pad(self._vocabulary)
        template = functions.llama_model_chat_template(self._model, None)
        self.chat_template = "" if template is None else template.decode()

    def tokenize(self, text: str, *, specials: bool = False) -> list[int]:
        """The tokens of a text by the library's own tokenizer, without a leading ``<|bos|>``.

        Parameters
        ----------
        specials : bool
            Whether the names of special tokens become those tokens.
        """
        data = check_text(text).encode()
        # A token has at least one byte.
        tokens = (ctypes.c_int32 * (len(data) + 1))()
        count = self._library.llama_tokenize(
            self._vocabulary, data, len(data), tokens, len(tokens), False, specials
        )
        assert count >= 0, count
        return list(tokens[:count])

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp's programs stop when the model writes this token."""
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, token))
