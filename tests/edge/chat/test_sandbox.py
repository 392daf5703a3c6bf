"""Templates that are broken, or written to do harm."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from edge.chat.sandbox import MAX_RENDER_S
from edge.chat.template import ChatTemplate
from edge.chat.tokenizer import MAX_PROMPT_CHARACTERS
from edge.errors import InputError
from tests.edge.chat.templates import TOOLS, USER

# Bytes that a rendering may hold: what it counts are characters and elements of lists.
MAX_HELD_BYTES = 200 << 20


def render(source: str, **options) -> str:
    template = ChatTemplate.open(source, tokens={"bos_token": "<s>"})
    return template.render([USER], tools=TOOLS, **options)


def error_of(source: str, **options) -> str:
    with pytest.raises(InputError) as raised:
        render(source, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% set x = range(100000) | list %}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(90) }}",
        "{% for i in range(99999) %}{{ range(99999) | map('abs') | max }}{% endfor %}",
    ],
)
def test_a_template_without_end_is_stopped(source):
    # A clock that jumps as soon as it was read some times: the time itself would only take time.
    ticks = itertools.chain(itertools.repeat(0.0, 50), itertools.repeat(MAX_RENDER_S + 1))
    assert "a loop without end?" in error_of(source, clock=lambda: next(ticks))


def test_a_loop_without_end_is_stopped_by_the_processors_time():
    assert "more than 1 s" in error_of(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% block b %}{{ self.b() }}{% endblock %}",
    ],
)
def test_a_recursion_without_end_is_stopped(source):
    assert "RecursionError" in error_of(source)


GROWING = "{%% set ns = namespace(s='ab', l=[1, 2]) %%}{%% for i in range(99) %%}%s{%% endfor %%}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * [1] }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ (2 ** 200) * (2 ** 200) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%(n)01000000000d' | format(n=1) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ 'a\nb' | indent('x' * 99) }}",
        GROWING % "{% set ns.s = ns.s ~ ns.s %}",
        GROWING % "{% set ns.s = ns.s + ns.s %}",
        GROWING % "{% set ns.s = [ns.s, ns.s] | join %}",
        GROWING % "{% set ns.s = ns.s.join([ns.s, ns.s]) %}",
        GROWING % "{% set ns.s = ns.s | replace('a', ns.s) %}",
        GROWING % "{% set ns.s = ns.s.replace('b', ns.s) %}",
        GROWING % "{% set ns.s = '%s%s' % (ns.s, ns.s) %}",
        GROWING % "{% set ns.l = ns.l + ns.l %}",
        GROWING % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l | tojson }}",
        GROWING % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l }}",
        GROWING % "{% set ns.l = {'a': ns.l, 'b': ns.l} %}" + "{{ ns.l ~ '' }}",
        "{% set s = 'a' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
        "{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
        "{% set ns.l = ns.l + [s.upper()] %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% set x %}{% for i in range(9999) %}{{ s }}{% endfor %}"
        "{% endset %}",
        "{% macro f() %}" + "a" * 90_000 + "{% endmacro %}{% set ns = namespace(l=[]) %}"
        "{% for i in range(9999) %}{% set ns.l = ns.l + [f()] %}{% endfor %}",
    ],
)
def test_what_a_template_makes_on_its_way_is_bounded(source):
    tracemalloc.start()
    try:
        error = error_of(source)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "out of bounds" in error
    assert most_bytes < MAX_HELD_BYTES


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{{ messages[0].content * 3 }}{% endfor %}",
        "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}",
    ],
)
def test_a_prompt_without_end_is_stopped_as_it_is_written(source):
    assert f"writes more than {MAX_PROMPT_CHARACTERS} characters" in error_of(source)


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__",
        "messages.__class__.__base__.__subclasses__()",
        "raise_exception.__globals__",
        "raise_exception.__code__",
        "strftime_now.__closure__[0]",
        "namespace.__init__.__globals__",
        "namespace.mro()",
        "dict.mro()",
        "dict.fromkeys.__self__",
        "range.__self__",
        "self._TemplateReference__context",
        "cycler.__init__.__globals__",
        "joiner",
        "lipsum()",
        "lipsum.__globals__['os']",
        "messages | map(attribute='__class__') | list | first | string",
        "messages[0]['__class__']['__mro__']",
        "'{0.__class__}'.format(messages)",
        "'{0.__class__}'.format_map({})",
        "'a'.encode()",
        "(messages | tojson).translate",
        "namespace(__class__=1).__class__.x",
        "messages.append(1)",
        "messages[0].update(role='system')",
        "messages[0].pop('role')",
        "messages.__setitem__(0, 1)",
        "loop.__class__",
    ],
)
def test_nothing_but_text_is_within_reach(expression):
    try:
        assert render("{{ " + expression + " }}") == ""
    except InputError as error:
        assert "the chat template fails" in str(error)  # noqa: PT017 - either is well


@pytest.mark.parametrize("name", ["attr", "center", "random", "pprint", "slice", "urlize", "sum"])
def test_filters_that_no_prompt_needs_are_unknown(name):
    with pytest.raises(Exception, match=f"No filter named '{name}'"):
        ChatTemplate.open("{{ [1] | " + name + " }}", tokens={})


@pytest.mark.parametrize(
    "source", ["{% include 'a' %}", "{% import 'a' as b %}", "{% extends 'a' %}"]
)
def test_there_are_no_other_templates(source):
    assert "no loader" in error_of(source)


def test_what_is_given_is_what_was_given_afterwards():
    source = "{% set messages = [] %}{% set tools = 1 %}{% for m in tools or [] %}{% endfor %}"
    message = {"role": "user", "content": "a"}
    ChatTemplate.open("{% set messages = [] %}", tokens={}).render([message])
    assert message == {"role": "user", "content": "a"}
    assert "int" in error_of(source)
