"""What talks for a chat model, from its Hugging Face folder: tokenizer, template, defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge.chat.sampling_defaults import SamplingDefaults
from edge.chat.template import ChatTemplate
from edge.chat.tokenizer import ChatTokenizer
from edge.errors import UsageError
from edge.files import read_capped
from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 1 << 20
# Of transformers' special tokens, those that a template may name.
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkFiles:
    """A tokenizer.json, the chat template if there is one, and how it is spoken to."""

    tokenizer: bytes
    template: str | None
    tokens: dict[str, str]
    sampling: SamplingDefaults


def talk_files_from_folder(folder: Path) -> TalkFiles:
    """Return them, tried as a device will open them.

    Raises UsageError if the folder has no tokenizer, ExportError or ModelError if what it has
    cannot be used.
    """
    library = _tokenizer(folder)
    content = library.backend_tokenizer.to_str().encode()
    if len(content) > MAX_TOKENIZER_BYTES:
        raise ExportError(f"{folder}: the tokenizer has {len(content)} bytes, far more than usual")
    tokens = {name: getattr(library, name) for name in _NAMED if getattr(library, name, None)}
    template = _template(library)
    ChatTokenizer.open(content)
    if template is not None:
        ChatTemplate.open(template, tokens=tokens)
    return TalkFiles(
        tokenizer=content, template=template, tokens=tokens, sampling=_sampling(folder)
    )


def _tokenizer(folder: Path) -> Any:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise UsageError(f"no tokenizer in {folder}; save it there with save_pretrained")
    from transformers import AutoTokenizer

    try:
        library = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except FOREIGN_ERRORS as error:
        raise ExportError(f"{folder}: its tokenizer cannot be read: {root_cause(error)}") from error
    if not getattr(library, "is_fast", False):
        raise ExportError(
            f"{folder}: its tokenizer has no tokenizer.json and none can be made of it; convert it "
            "with transformers first"
        )
    return library


def _template(library: Any) -> str | None:
    template = library.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template.strip() else None


class _Generation(msgspec.Struct, frozen=True):
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def _sampling(folder: Path) -> SamplingDefaults:
    """Return what generation_config.json asks for; where it says nothing, OpenAI's default holds.

    transformers would take the likeliest token there, which no chat client expects.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return SamplingDefaults()
    try:
        said = msgspec.json.decode(
            read_capped(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True), type=_Generation
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} is malformed: {error}") from error
    given = {key: value for key, value in msgspec.structs.asdict(said).items() if value is not None}
    if given.get("top_k") == 0:  # transformers' word for all
        del given["top_k"]
    try:
        return msgspec.convert(given, SamplingDefaults)
    except msgspec.ValidationError as error:
        raise ExportError(f"{path}: no sampler does this: {error}") from error
