"""What a chat completion asks of its answer: a form, tools, and what its template may read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.chat.answer_grammar import CallWish
from edge.chat.conversation import template_tools
from edge.chat.grammar import ANY_OBJECT
from edge.chat.openai_request import (
    ChatCompletionRequest,
    NamedTool,
    ObjectFormat,
    SchemaFormat,
    check_nesting,
)
from edge.chat.tools import ToolForm
from edge.openai_form import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolWish:
    """The tools that count, as templates take them, and how they are to be called.

    callable: those that the answer may call, where a grammar says so.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    callable: Sequence[Mapping[str, Any]] = ()
    calls: CallWish = "may"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaWish:
    """The schema of an answer that is JSON, and whether all of it must be followed."""

    schema: dict[str, Any]
    is_strict: bool


def tool_wish(request: ChatCompletionRequest, form: ToolForm | None, model: str) -> ToolWish:
    """Return the tools of a request; raises FieldError. form: how the model calls them."""
    choice, tools = request.tool_choice, template_tools(request.tools or ())
    chosen = tools
    if isinstance(choice, NamedTool):
        name = choice.function.name
        chosen = [tool for tool in tools if tool["function"]["name"] == name]
        if not chosen:
            raise FieldError(
                f"tool_choice names {name[:80]!r}, which is none of the tools", "tool_choice"
            )
    elif choice == "required" and not tools:
        raise FieldError("tool_choice: there are no tools to call", "tool_choice")
    elif choice == "none" or not tools:
        return ToolWish()
    if form is None:
        raise FieldError(
            f"tools: how model {model!r} calls any is not known from its chat template; leave them "
            "out",
            "tools",
        )
    if choice not in (None, "auto"):
        return ToolWish(tools=tools, callable=chosen, calls="must")
    is_strict = any(tool.function.strict for tool in request.tools or ())
    return ToolWish(tools=tools, callable=tools, calls="exact" if is_strict else "may")


def schema_wish(request: ChatCompletionRequest) -> SchemaWish | None:
    """Return the schema that an answer has to have, None if it is text."""
    wanted = request.response_format
    if isinstance(wanted, ObjectFormat):
        return SchemaWish(schema=ANY_OBJECT, is_strict=False)
    if isinstance(wanted, SchemaFormat):
        given = wanted.json_schema
        schema = ANY_OBJECT if given.schema is None else given.schema
        check_nesting(schema, "response_format")
        return SchemaWish(schema=schema, is_strict=bool(given.strict))
    return None


def template_variables(request: ChatCompletionRequest) -> dict[str, Any]:
    """Return what a template may read besides the conversation."""
    check_nesting(request.chat_template_kwargs, "chat_template_kwargs")
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
        if request.reasoning_effort == "none":
            variables.setdefault("enable_thinking", False)
    if request.enable_thinking is not None:
        variables["enable_thinking"] = request.enable_thinking
    return variables
