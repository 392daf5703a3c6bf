"""Grammars of answers that call tools, or think before they say something."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge.chat.grammar import json_rule, literal
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import ARGUMENTS, HERMES_END, START, THINK, THINK_END, ToolForm
from edge.errors import InputError


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
    rules = [f"call: {' | '.join(f'call_{n}' for n in range(len(functions)))}"]
    for number, function in enumerate(functions):
        call = _named_call if form == "mistral-named" else _object_call
        rules += [
            f"call_{number}: {call(form, function['name'], f'arguments_{number}', tokenizer)}",
            f"arguments_{number}: {json_rule(_object_schema(function), strict=False)}",
        ]
    start = _sign(START[form], tokenizer)
    if form == "mistral":
        more = '(SPACE "," SPACE call)*' if parallel else ""
        rules.append(f'calls: {start} SPACE "[" SPACE call {more} SPACE "]"')
    elif form == "mistral-named":
        rules.append(f"calls: ({start} call)+" if parallel else f"calls: {start} call")
    elif form == "llama":
        rules.append("calls: call")
    else:
        more = '("\\n" marked)*' if parallel else ""
        end = _sign(HERMES_END, tokenizer)
        rules += [f"calls: marked {more}", f'marked: {start} "\\n" call "\\n" {end}']
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


def _object_call(form: ToolForm, name: str, arguments: str, tokenizer: ChatTokenizer) -> str:
    key = "parameters" if form == "llama" else "arguments"
    fields = (("name", literal(json.dumps(name))), (key, arguments))
    pairs = [f'{literal(json.dumps(field))} SPACE ":" SPACE {value}' for field, value in fields]
    inside = ' SPACE "," SPACE '.join(pairs)
    return f'"{{" SPACE {inside} SPACE "}}"'


def _named_call(form: ToolForm, name: str, arguments: str, tokenizer: ChatTokenizer) -> str:
    return f"{literal(name)} {_sign(ARGUMENTS, tokenizer)} {arguments}"


def _sign(sign: str, tokenizer: ChatTokenizer) -> str:
    return literal(sign, tokenizer.token_of(sign))


def _object_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object whatever else it says."""
    schema = function.get("parameters") or {}
    if schema.get("type", "object") != "object":
        raise InputError(
            f"the parameters of function {function['name']!r} are of type "
            f"{json.dumps(schema['type'])}; arguments are an object: describe one"
        )
    return {**schema, "type": "object"}
