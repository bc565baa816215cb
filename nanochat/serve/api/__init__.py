"""What is asked and answered: chats, completions, embeddings, tokens, and two other APIs that say the same."""

__all__: list[str] = []
