"""This package holds what is known of Rust: its tokens, where a function ends, and what is refused.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
