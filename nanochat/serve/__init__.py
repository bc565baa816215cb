"""The server: many people ask one model over HTTP, as OpenAI's clients do; each answer is what it would be alone.

`app` is the application, `run` serves it; `engine` is the thread that owns the model.
"""

__all__: list[str] = []
