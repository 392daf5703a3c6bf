"""Tool calls as models write them: in forms that are told by the chat template that taught them.

- "hermes" (Qwen and many others): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`,
  one after the other.
- "llama": the whole answer is `{"name": ..., "parameters": {...}}`, after `<|python_tag|>` or not;
  several are parted by `;`.
- "mistral": `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`.
- "mistral-named": `[TOOL_CALLS]name[ARGS]{...}` for each call. Both of Mistral's are read alike.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from dataclasses import dataclass
from typing import Literal

import msgspec

from edge.chat.tokenizer import ChatTokenizer

ToolForm = Literal["hermes", "llama", "mistral", "mistral-named"]
MISTRAL: tuple[ToolForm, ...] = ("mistral", "mistral-named")
START: dict[ToolForm, str] = {
    "hermes": "<tool_call>",
    "llama": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
    "mistral-named": "[TOOL_CALLS]",
}
ARGUMENTS = "[ARGS]"
HERMES_END = "</tool_call>"
# Signs that mean something within an answer, special tokens or not.
SIGNS: dict[ToolForm, tuple[str, ...]] = {
    "hermes": (START["hermes"], HERMES_END),
    "llama": (START["llama"],),
    "mistral": (START["mistral"], ARGUMENTS, "[CALL_ID]"),
    "mistral-named": (START["mistral"], ARGUMENTS, "[CALL_ID]"),
}
THINK, THINK_END = "<think>", "</think>"
_NAMED_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w*\s*)?(?:\[ARGS\])?\s*(?=\{)")
_BETWEEN = re.compile(r"[\s;]*")
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that a model asks for; arguments: JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


def tool_form(template: str) -> ToolForm | None:
    """Return how a model calls tools, None if its chat template knows none."""
    if START["mistral"] in template:
        return "mistral-named" if ARGUMENTS in template else "mistral"
    if START["hermes"] in template and "<function=" not in template:
        return "hermes"
    if START["llama"] in template or ('"parameters": ' in template and "ipython" in template):
        return "llama"
    return None


def thinks(template: str) -> bool:
    """Return whether a model may think before it answers, as its chat template says."""
    return THINK_END in template


def is_thinking(prompt: str) -> bool:
    """Return whether a prompt ends within the model's thoughts, so that the answer starts there."""
    return prompt.rstrip().endswith(THINK)


def shown_tokens(form: ToolForm | None, tokenizer: ChatTokenizer) -> frozenset[int]:
    """Return the special tokens that `AnswerParser` has to see."""
    names = (*(SIGNS[form] if form else ()), THINK, THINK_END)
    return frozenset(token for name in names if (token := tokenizer.token_of(name)) is not None)


def new_call_id(form: ToolForm | None) -> str:
    """Return an id for a call; templates of Mistral's take no others than nine characters."""
    if form in MISTRAL:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


def calls_from(form: ToolForm, text: str) -> list[tuple[str, str]] | None:
    """Return name and arguments of every call that a text without its signs spells, in order.

    None if it is anything else than calls.
    """
    try:
        if form in MISTRAL:
            return _mistral_calls(text)
        spans = _objects(text)
        return [_call(msgspec.json.decode(span, type=_Spelled)) for span in spans] or None
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None


class _Spelled(msgspec.Struct):
    name: str
    arguments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _call(spelled: _Spelled) -> tuple[str, str]:
    raw = spelled.arguments if spelled.parameters is msgspec.UNSET else spelled.parameters
    if not spelled.name:
        raise ValueError("a call without a name")
    if raw is msgspec.UNSET:
        return spelled.name, "{}"
    value = json.loads(bytes(raw))
    # Some models write the object as a string that holds it.
    text = value if isinstance(value, str) else bytes(raw).decode()
    if not isinstance(json.loads(text), dict):
        raise ValueError("arguments that are no object")
    return spelled.name, text


def _objects(text: str) -> list[str]:
    """Return the JSON values of a text, parted by space or `;`."""
    found, at = [], _after(_BETWEEN, text, 0)
    while at < len(text):
        _, end = _JSON.raw_decode(text, at)
        found.append(text[at:end])
        at = _after(_BETWEEN, text, end)
    return found


def _mistral_calls(text: str) -> list[tuple[str, str]] | None:
    if text.lstrip().startswith("["):
        return [_call(one) for one in msgspec.json.decode(text, type=list[_Spelled])] or None
    found = []
    for part in text.split(START["mistral"]):
        named = _NAMED_CALL.match(part)
        if named is None:
            return None
        arguments = part[named.end() :].strip()
        if not isinstance(json.loads(arguments), dict):
            return None
        found.append((named[1], arguments))
    return found


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
