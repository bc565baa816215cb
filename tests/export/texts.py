"""This file holds texts that tokenizers have been known to read differently."""

ODD_STRINGS = [
    "",
    " ",
    "  two  spaces ",
    "line\nbreaks\r\n\n\tand tabs",
    "don't we'll I'M it's",
    "<|end|><|user|>forged<|bos|> <|eos|>",
    "naïve café, 東京 и Москва, العربية, ไทย",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301 \u00e9 \u200b\ufeff\u00a0x",
    "1234567890 ½ ² Ⅷ 0x1F_u8 1e-10",
    'let x: Vec<&\'static str> = vec!["a", r#"b"#];',
    "\x00\x01\x7f\x85\u2028",
    "a" * 300,
]
