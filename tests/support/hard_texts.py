"""Texts on which tokenizers differ where they can."""

HARD_TEXTS = [
    "",
    " ",
    "The Eiffel Tower is in the city of",
    "a  b      c ",
    " leading, and trailing  ",
    "one\n\n\ntwo\r\n\tthree\n",
    "<bos>twice<bos><eos> <pad><unk> <mask> <unused7>",
    "<start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n",
    "<Bos> < bos > <start_of_turn >",
    "▁already ▁▁ marked",
    "The hieroglyph 𓀀𓂀 means \ud7ff\ue000\uffff",
    "I am so happy 🙂👩🏽‍🚀🇫🇷",
    "e\u0301 é ﬁ ½ Å \u212b \u00a0\u200b\u2003\ufeff",
    "שלום עולם، مرحبا بالعالم 你好，世界 สวัสดี",
    "<0x0A> \\n \x00\x01\x7f",
    "x = [\"]\", '<b>&amp;</b>', `\\n`, ]\n    return   12345678901234567890",
    "Dallas is in Texas; Austin, North Carolina.",
]
