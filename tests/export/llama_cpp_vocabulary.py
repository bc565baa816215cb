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

    def tokenize(self, text: str, *, specials: bool = False, start: bool = False) -> list[int]:
        """The tokens of a text by the library's own tokenizer.

        Parameters
        ----------
        specials : bool
            Whether the names of special tokens become those tokens.
        start : bool
            Whether the text begins as the file says, as in the library's programs.
        """
        data = check_text(text).encode()
        # A token has at least one byte, but for the space and the token that may stand before a text.
        tokens = (ctypes.c_int32 * (len(data) + 2))()
        count = self._library.llama_tokenize(
            self._vocabulary, data, len(data), tokens, len(tokens), start, specials
        )
        assert count >= 0, count
        return list(tokens[:count])

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens as the library's programs write it, piece by piece; special ones have none.

        Its function for a whole text deletes spaces before punctuation, whatever the vocabulary.
        """
        return b"".join(map(self._piece, tokens)).decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp's programs stop when the model writes this token."""
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, token))

    def _piece(self, token: int) -> bytes:
        write = self._library.llama_token_to_piece
        integer = ctypes.c_int32
        write.argtypes = [
            ctypes.c_void_p,
            integer,
            ctypes.c_char_p,
            integer,
            integer,
            ctypes.c_bool,
        ]
        text = ctypes.create_string_buffer(1024)
        count = write(self._vocabulary, token, text, len(text), 0, False)
        assert count >= 0, count
        return text.raw[:count]
