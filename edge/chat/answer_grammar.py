"""The grammar that a request wants its answer to have: JSON, tool calls, or text with calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.chat.call_grammar import call_rules, text_rule, thought_grammar
from edge.chat.grammar import json_rule
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import ToolForm

CallWish = Literal["must", "exact", "may"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an answer may be.

    schema: of the JSON that it is, None for text. is_strict: whether what of the schema cannot be
    followed is refused. tools: that it may call, as templates take them, in the model's form.
    calls: "must" is nothing but calls, "exact" lets it choose but not break a schema, "may" lets
    it write what it likes if it is text. may_think, is_thinking: see AnswerForm.
    """

    schema: dict[str, Any] | None = None
    is_strict: bool = False
    form: ToolForm | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    calls: CallWish = "may"
    parallel: bool = True
    may_think: bool = False
    is_thinking: bool = False


def answer_grammar(wanted: Wanted, tokenizer: ChatTokenizer) -> str | None:
    """Return the grammar of an answer, None if it may be anything; raises InputError."""
    has_calls = wanted.form is not None and bool(wanted.tools)
    if wanted.schema is None and not (has_calls and wanted.calls != "may"):
        return None
    before = ""
    if wanted.may_think or wanted.is_thinking:
        before = thought_grammar(tokenizer, is_thinking=wanted.is_thinking)
    bodies, rules = [], []
    if wanted.form is not None and has_calls:
        bodies.append("calls")
        rules.append(call_rules(wanted.form, wanted.tools, tokenizer, parallel=wanted.parallel))
    if wanted.calls != "must" or not has_calls:
        if wanted.schema is not None:
            bodies.append("json")
            rules.append(f"json: {json_rule(wanted.schema, strict=wanted.is_strict)}\n")
        elif wanted.form is not None:
            # What is said before calls; in Llama's form there is either.
            bodies.append("TEXT" if wanted.form == "llama" else "TEXT calls?")
            rules.append(text_rule(wanted.form))
    return f"start: {before} body\nbody: {' | '.join(bodies)}\n" + "".join(rules)
