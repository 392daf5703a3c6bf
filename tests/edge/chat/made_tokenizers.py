"""Small tokenizers in the manner of Llama 3 and Qwen, of Llama 2, and of Mistral."""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = (
    "The cat sat on the mat; the dog ran far away from the other dogs.",
    'Answer with {"name": "get_weather", "arguments": {"city": "Paris"}} and nothing else.',
    "Größe, naïve café, 你好世界, 你好, Привет, 🙂🙂 and 👩‍👩‍👧.",
    "def f(x):\n    return [x, x, 1234567890]\n",
)
SPECIAL = ("<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "<|python_tag|>")
TEXTUAL = ("<tool_call>", "</tool_call>", "<think>", "</think>")


def byte_level() -> Tokenizer:
    """Return byte-level BPE, as Llama 3, Qwen and newer Mistral models have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    _add_tokens(tokenizer)
    begin = tokenizer.token_to_id(SPECIAL[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], begin)]
    )
    return tokenizer


def sentence_piece() -> Tokenizer:
    """Return BPE with bytes for what it has no piece for, as converters write Llama 2's."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:{}\"'[]<>()_|/\n1234567890"
    merges = [
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("▁", "c"),
        ("▁c", "a"),
        ("▁ca", "t"),
        ("▁", "▁"),
    ]
    tokens += [*letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add_tokens(tokenizer)
    return tokenizer


def metaspace() -> Tokenizer:
    """Return the same pieces, with the decoder that goes with Metaspace."""
    tokenizer = sentence_piece()
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    return tokenizer


def json_of(tokenizer: Tokenizer) -> bytes:
    return tokenizer.to_str().encode()


def _add_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in TEXTUAL])
