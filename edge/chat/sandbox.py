"""Where chat templates run: they come from elsewhere, so that they are kept from all but text.

Jinja's sandbox keeps a template from Python's internals and from changing what it is given. Here
it is bounded too. Every loop, call, filter and operator looks at the time, and what it makes is
counted, so that no template runs for ever or fills the memory.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

MAX_RENDER_S = 1.0  # of one thread's processor; a long conversation takes some hundredths
# Characters that a rendering may make on its way: a text is copied some times until it is written.
MAX_MADE = 1 << 25
_ELEMENT = 16  # characters that an element of a list or a number counts as
_MAX_INDENT = 16
_MAX_INTEGER_BITS = 256
_MAX_REFUSAL = 400
_WIDTH = re.compile(r"%(\([^)]*\))?[^A-Za-z%]*?(\d{3}|\*)")

# Left out are those that make much of little, draw at random, or look into objects.
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float format groupby indent int items "
    "join last length list lower map max min reject rejectattr replace reverse round safe select "
    "selectattr sort string title trim truncate unique upper wordcount"
)
_ATTRIBUTES: dict[type, str] = {
    str: "capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper "
    "join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
    "rstrip split splitlines startswith strip swapcase title upper",
    dict: "get items keys values",
    list: "count index",
    tuple: "count index",
    LoopContext: "changed cycle depth depth0 first index index0 last length nextitem previtem "
    "revindex revindex0",
    Macro: "arguments caller catch_kwargs catch_varargs name",
}
_ALLOWED = {kind: frozenset(names.split()) for kind, names in _ATTRIBUTES.items()}


class BoundsError(TemplateRuntimeError):
    """A template takes too long, or makes too much."""


class RefusedError(TemplateError):
    """A template calls raise_exception: it does not take this conversation."""


class Budget:
    """What one rendering may still use. clock: seconds of this thread's processor."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = clock() + MAX_RENDER_S
        self._left = MAX_MADE

    def step(self) -> None:
        """Raise BoundsError if time is up."""
        if self._clock() > self._end:
            raise BoundsError(f"it takes more than {MAX_RENDER_S:g} s: a loop without end?")

    def take(self, size: int) -> None:
        """Count what is made; raises BoundsError."""
        self._left -= size
        if self._left < 0:
            raise BoundsError(f"it makes more than {MAX_MADE} characters on its way")

    def take_written(self, value: Any) -> None:
        """Count what value is when it is written out; raises BoundsError."""
        if isinstance(value, str):
            self.take(len(value))
        elif isinstance(value, dict | list | tuple):
            self.step()
            self.take(_ELEMENT * len(value))
            for held in value:
                self.take_written(held)
            for held in value.values() if isinstance(value, dict) else ():
                self.take_written(held)
        else:
            self.take(_ELEMENT)


BUDGET: ContextVar[Budget] = ContextVar("budget")


class Environment(ImmutableSandboxedEnvironment):
    """The language of chat templates, as transformers has it, within bounds."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed before there is a budget
            extensions=[_Generation, loopcontrols],
            finalize=_written,
        )
        named = {name: FILTERS[name] for name in _FILTERS.split()}
        self.filters = {name: _bounded(name, function) for name, function in named.items()}
        self.filters["tojson"] = _bounded("tojson", _tojson)
        self.globals = {
            "range": self.globals["range"],
            "dict": _make_dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
        }

    def compiled(self, source: str) -> Any:
        """Return the template; raises TemplateSyntaxError, or what Python's own compiler does."""
        tree = self.parse(source)
        _watch(tree)
        code = self.compile(tree)
        return self.template_class.from_code(self, code, self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may read an attribute: few of few types."""
        if isinstance(obj, _Namespace):
            return not attr.startswith("_")
        return any(attr in names for kind, names in _ALLOWED.items() if isinstance(obj, kind))

    def wrap_str_format(self, value: Any) -> None:
        """Leave str.format what it is: no attribute that a template may read."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator whose result may be large."""
        budget = BUDGET.get()
        budget.step()
        if operator == "+":
            budget.take(_length(left) + _length(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            budget.take_written(right)
        elif operator == "*":
            budget.take(max(_length(left) * _times(right), _length(right) * _times(left)))
        if operator in {"*", "**"} and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > _MAX_INTEGER_BITS:
                raise BoundsError("it computes with very large numbers")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Return what a callable returns."""
        BUDGET.get().step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            args = _checked(name, (owner, *args))[1:]
        return _counted(super().call(__context, __obj, *args, **kwargs))

    # What `_watch` puts into a template in the place of what cannot be intercepted.
    def step(self, size: int) -> None:
        """Look at the time, and count the text that follows it in the template."""
        budget = BUDGET.get()
        budget.step()
        budget.take(size)

    def joined(self, *parts: Any) -> Any:
        """Return parts as one text: the operator `~`."""
        for part in parts:
            BUDGET.get().take_written(part)
        texts = [str(part) for part in parts]
        return "".join(texts)

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Return a part of a sequence."""
        return _counted(value[slice(start, stop, step)])


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - Extension's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}")
        super().__setitem__(name, value)


def strftime(now: datetime, pattern: str) -> str:
    """Return a time in the form of a pattern, whose widths are bounded."""
    _check_format(pattern)
    return now.strftime(pattern)


def _watch(tree: nodes.Node) -> None:
    """Make a template look at its budget in each turn of a loop, `~`, slice and macro."""
    for node in list(tree.iter_child_nodes()):
        _watch(node)
    for name, value in list(tree.iter_fields()):
        if isinstance(value, list):
            setattr(tree, name, [_watched(held) for held in value])
        else:
            setattr(tree, name, _watched(value))
    if isinstance(tree, nodes.For | nodes.Macro | nodes.CallBlock):
        size = sum(len(text.data) for held in tree.body for text in _texts(held))
        step = _calling("step", [nodes.Const(size)])
        tree.body.insert(0, nodes.ExprStmt(step, lineno=tree.lineno))


def _watched(node: Any) -> Any:
    if isinstance(node, nodes.Concat):
        return _calling("joined", node.nodes)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return _calling("sliced", [node.node, *(end or nodes.Const(None) for end in ends)])
    return node


def _texts(node: nodes.Node) -> Iterable[nodes.TemplateData]:
    return [node] if isinstance(node, nodes.TemplateData) else node.find_all(nodes.TemplateData)


def _calling(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


@pass_context  # or Jinja would compute constants while it compiles
def _written(context: Context, value: Any) -> Any:
    BUDGET.get().take_written(value)
    return value


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts what it makes; what it is given first is its subject."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        BUDGET.get().step()
        checked = _checked(name, args[skipped:], **kwargs)
        return _counted(function(*args[:skipped], *checked, **kwargs))

    return bounded


def _checked(name: str, args: tuple[Any, ...], **kwargs: Any) -> tuple[Any, ...]:
    """Return the arguments of a filter or a text's method if what it makes is within bounds."""
    budget, (subject, *rest) = BUDGET.get(), args
    if name == "join":
        # The method is the separator's, the filter's subject is what is joined.
        joins = isinstance(subject, str) and bool(rest)
        parts = list(rest[0] if joins else subject)
        separator = subject if joins else kwargs.get("d", rest[0] if rest else "")
        budget.take(len(parts) * _length(separator))
        budget.take_written(parts)
        return (subject, parts, *rest[1:]) if joins else (parts, *rest)
    if name == "replace":
        old, new = [*rest, kwargs.get("old"), kwargs.get("new")][:2]
        budget.take(str(subject).count(str(old)) * _length(str(new)))
    elif name == "format":
        _check_format(subject)
        budget.take_written((*rest, *kwargs.values()))
    elif name in {"tojson", "string", "indent"}:
        widths = [value for value in (*rest, *kwargs.values()) if isinstance(value, int | str)]
        if any((len(w) if isinstance(w, str) else w) > _MAX_INDENT for w in widths):
            raise BoundsError(f"it indents by more than {_MAX_INDENT}")
        budget.take_written(subject)
        if isinstance(subject, str):
            budget.take(subject.count("\n") * _MAX_INDENT)
    return args


def _counted(value: Any) -> Any:
    BUDGET.get().take(_length(value))
    return value


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return _ELEMENT * len(value) if isinstance(value, list | tuple | dict) else 0


def _times(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _check_format(pattern: Any) -> None:
    if isinstance(pattern, str) and _WIDTH.search(pattern):
        raise BoundsError(f"it formats with the width of {pattern[:40]!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> None:
    raise RefusedError(str(message)[:_MAX_REFUSAL])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers writes it: Jinja's own is for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
