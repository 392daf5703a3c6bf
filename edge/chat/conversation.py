"""From the messages and tools of a request to what a chat template takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from edge.chat.openai_request import CalledFunction, ContentPart, Message, Tool, check_nesting
from edge.chat.tools import MISTRAL, ToolForm
from edge.openai_form import FieldError

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")


def template_messages(
    messages: Sequence[Message], *, form: ToolForm | None, knows_developer: bool
) -> list[dict[str, Any]]:
    """Return messages as chat templates take them; raises FieldError.

    knows_developer: whether the template has a role of that name; to others it is the system.
    Content is always a text, the arguments of calls are objects.
    """
    return [
        _message(message, f"messages[{index}]", form, knows_developer)
        for index, message in enumerate(messages)
    ]


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return tools as chat templates take them; raises FieldError."""
    if len(tools) > MAX_TOOLS:
        raise FieldError(f"tools holds {len(tools)}; send at most {MAX_TOOLS}", "tools")
    taken, names = [], set()
    for index, tool in enumerate(tools):
        function, field = tool.function, f"tools[{index}].function"
        if not _NAME.fullmatch(function.name):
            raise FieldError(
                f"{field}.name {function.name[:80]!r} is none; it has 1..64 letters of A-Z, a-z, "
                "0-9, _, - and .",
                f"{field}.name",
            )
        if function.name in names:
            raise FieldError(f"{field}.name {function.name!r} comes twice", f"{field}.name")
        names.add(function.name)
        taken.append({"type": "function", "function": _function(tool, f"{field}.parameters")})
    return taken


def _function(tool: Tool, field: str) -> dict[str, Any]:
    function = tool.function
    kind = (function.parameters or {}).get("type", "object")
    if kind != "object":
        raise FieldError(
            f"{field} are of type {json.dumps(kind)[:80]}; arguments are an object: describe one",
            field,
        )
    check_nesting(function.parameters, field)
    described = {} if function.description is None else {"description": function.description}
    parameters = {"type": "object", "properties": {}}
    if function.parameters is not None:
        parameters = function.parameters
    return {"name": function.name, **described, "parameters": parameters}


def _message(
    message: Message, field: str, form: ToolForm | None, knows_developer: bool
) -> dict[str, Any]:
    role = message.role
    if role not in ROLES:
        raise FieldError(
            f"{field}.role {role[:80]!r} is unknown; roles are {', '.join(ROLES)}", f"{field}.role"
        )
    if role == "developer" and not knows_developer:
        role = "system"
    if message.content is None and role != "assistant":
        raise FieldError(f"{field}.content is missing", f"{field}.content")
    taken: dict[str, Any] = {"role": role, "content": _text(message.content, f"{field}.content")}
    if message.name is not None:
        taken["name"] = message.name
    if role == "assistant":
        thought = message.reasoning_content or message.reasoning
        if thought is not None:
            taken["reasoning_content"] = thought
        if message.tool_calls:
            taken["tool_calls"] = _calls(message, f"{field}.tool_calls", form)
    elif message.tool_calls:
        raise FieldError(f"{field}: only an assistant calls tools", f"{field}.tool_calls")
    if role == "tool" and message.tool_call_id is not None:
        taken["tool_call_id"] = _call_id(message.tool_call_id, form)
    return taken


def _text(content: str | list[ContentPart] | None, field: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        text = part.text if part.type == "text" else part.refusal
        if part.type not in {"text", "refusal"}:
            raise FieldError(
                f"{field}[{index}].type {part.type[:80]!r} is not supported: this model takes "
                "text only",
                f"{field}[{index}].type",
            )
        if text is None:
            raise FieldError(f"{field}[{index}] has no text", f"{field}[{index}].text")
        texts.append(text)
    return "\n".join(texts)


def _calls(message: Message, field: str, form: ToolForm | None) -> list[dict[str, Any]]:
    calls = []
    for index, call in enumerate(message.tool_calls or ()):
        where = f"{field}[{index}].function.arguments"
        function = {"name": call.function.name, "arguments": _arguments(call.function, where)}
        given = {} if call.id is None else {"id": _call_id(call.id, form)}
        calls.append({**given, "type": "function", "function": function})
    return calls


def _arguments(function: CalledFunction, field: str) -> dict[str, Any]:
    arguments: Any = function.arguments
    if not isinstance(arguments, dict):
        try:
            arguments = json.loads(arguments or "{}", parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise FieldError(f"{field} are no JSON: {str(error)[:80]}", field) from error
    check_nesting(arguments, field)
    if not isinstance(arguments, dict):
        raise FieldError(f"{field} are no object", field)
    return arguments


def _refuse(constant: str) -> Callable[[], None]:
    raise ValueError(f"JSON has no {constant}")


def _call_id(given: str, form: ToolForm | None) -> str:
    """Return the id of a call; templates of Mistral's take no others than nine characters."""
    if form not in MISTRAL or _MISTRAL_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]
