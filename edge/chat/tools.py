"""Tool calls as models write them: three forms, told by the chat template that taught them.

- "hermes" (Qwen and many others): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`,
  one after the other.
- "llama": the whole answer is `{"name": ..., "parameters": {...}}`, after `<|python_tag|>` or not;
  several are parted by `;`.
- "mistral": `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, or
  `[TOOL_CALLS]name[ARGS]{...}` for each call.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from edge.chat.grammar import json_rule, literal
from edge.chat.tokenizer import ChatTokenizer
from edge.errors import InputError

ToolForm = Literal["hermes", "llama", "mistral"]
START: dict[ToolForm, str] = {
    "hermes": "<tool_call>",
    "llama": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
}
HERMES_END = "</tool_call>"
# Signs that mean something within an answer, special tokens or not.
_SIGNS: dict[ToolForm, tuple[str, ...]] = {
    "hermes": (START["hermes"], HERMES_END),
    "llama": (START["llama"],),
    "mistral": (START["mistral"], "[ARGS]", "[CALL_ID]"),
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
        return "mistral"
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
    names = (*(_SIGNS[form] if form else ()), THINK, THINK_END)
    return frozenset(token for name in names if (token := tokenizer.token_of(name)) is not None)


def new_call_id(form: ToolForm | None) -> str:
    """Return an id for a call; templates of Mistral's take no others than nine characters."""
    if form == "mistral":
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


def calls_from(form: ToolForm, text: str) -> list[tuple[str, str]] | None:
    """Return name and arguments of every call that a text without its signs spells, in order.

    None if it is anything else than calls.
    """
    try:
        if form == "mistral":
            return _mistral_calls(text)
        spans = _objects(text)
        return [_call(msgspec.json.decode(span, type=_Spelled)) for span in spans] or None
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None


def call_grammar(
    form: ToolForm,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: ChatTokenizer,
    *,
    parallel: bool,
    before: str,
) -> str:
    """Return the grammar of an answer that calls some of these tools and says nothing else.

    tools: as requests have them, `{"function": {"name", "parameters"}}`. before: what may come
    before the calls. Raises InputError for schemas that are too long, or are not of objects.
    """
    return f"start: {before} calls\n" + call_rules(form, tools, tokenizer, parallel=parallel)


def call_rules(
    form: ToolForm,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: ChatTokenizer,
    *,
    parallel: bool,
) -> str:
    """Return what `calls` are within a grammar; see `call_grammar`.

    Each tool has a schema of its own, so that references in it mean what they say.
    """
    functions = [tool["function"] for tool in tools]
    key = "parameters" if form == "llama" else "arguments"
    rules = [f"call: {' | '.join(f'call_{n}' for n in range(len(functions)))}"]
    for number, function in enumerate(functions):
        fields = (("name", literal(json.dumps(function["name"]))), (key, f"arguments_{number}"))
        pairs = [f'{literal(json.dumps(name))} SPACE ":" SPACE {value}' for name, value in fields]
        inside = ' SPACE "," SPACE '.join(pairs)
        rules += [
            f'call_{number}: "{{" SPACE {inside} SPACE "}}"',
            f"arguments_{number}: {json_rule(_object_schema(function), strict=False)}",
        ]
    start, *ends = (literal(sign, tokenizer.token_of(sign)) for sign in _SIGNS[form][:2])
    if form == "mistral":
        more = '(SPACE "," SPACE call)*' if parallel else ""
        rules.append(f'calls: {start} SPACE "[" SPACE call {more} SPACE "]"')
    elif form == "llama":
        rules.append("calls: call")
    else:
        more = '("\\n" marked)*' if parallel else ""
        rules += [f"calls: marked {more}", f'marked: {start} "\\n" call "\\n" {ends[0]}']
    return "\n".join([*rules, r"SPACE: /[ \n\t]{0,40}/", ""])


def text_rule(form: ToolForm) -> str:
    """Return what `TEXT` is within a grammar: all that is no call, nor the start of one."""
    sign = re.escape(START[form]).replace("/", r"\/")
    first = r"[^ \n\t{]" if form == "llama" else r"(.|\n)"
    return rf"TEXT: /({first}(.|\n)*)?/ & ~/(.|\n)*{sign}(.|\n)*/" + "\n"


def thought_grammar(tokenizer: ChatTokenizer, *, is_thinking: bool) -> str:
    """Return what may come before the answer of a model that thinks, within a grammar.

    Nothing if the model has no tokens that part its thoughts from its answer.
    """
    start, end = tokenizer.token_of(THINK), tokenizer.token_of(THINK_END)
    if start is None or end is None:
        return ""
    thought = f"/(.|\\n)*/ {literal(THINK_END, end)}"
    opened = thought if is_thinking else f"({literal(THINK, start)} {thought})?"
    return f"{opened} /[ \\n]{{0,4}}/"


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


def _object_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object whatever else it says."""
    schema = function.get("parameters") or {}
    if schema.get("type", "object") != "object":
        raise InputError(
            f"the parameters of function {function['name']!r} are of type "
            f"{json.dumps(schema['type'])}; arguments are an object: describe one"
        )
    return {**schema, "type": "object"}
