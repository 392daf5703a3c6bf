"""An answer parted as it comes: thoughts, what is said, and tool calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.chat.detokenizer import overlap
from edge.chat.tools import HERMES_END, START, THINK, THINK_END, ToolCall, ToolForm, calls_from


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What to look for in an answer.

    calls: how tools are called, None if there are none. names: of the tools. parallel: whether
    more than one call counts. may_think: whether it may start with thoughts. is_thinking: it does,
    the prompt has opened them.
    """

    calls: ToolForm | None = None
    names: frozenset[str] = frozenset()
    parallel: bool = True
    may_think: bool = False
    is_thinking: bool = False


@dataclass(slots=True)
class Pieces:
    """What a part of the text adds to each."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


class AnswerParser:
    """Parts one answer. What looks like a call or a thought, but is none, is content: as it came.

    new_id: gives the id of the next call.
    """

    def __init__(self, form: AnswerForm, new_id: Callable[[], str]) -> None:
        self._form = form
        self._new_id = new_id
        self._text = ""  # not given yet
        self._called = False
        self._drops_space = form.is_thinking
        self._step: Callable[[Pieces, bool], None] = self._content
        if form.is_thinking:
            self._step = self._thought
        elif form.may_think or form.calls == "llama":
            self._step = self._start

    @property
    def has_called(self) -> bool:
        """Whether the answer has called a tool so far."""
        return self._called

    def push(self, text: str) -> Pieces:
        """Return what is certain now; it may be nothing."""
        if self._form.calls is None and self._step == self._content and not self._drops_space:
            return Pieces(content=text)
        self._text += text
        return self._parted(final=False)

    def finish(self) -> Pieces:
        """Return what was held back."""
        return self._parted(final=True)

    def _parted(self, *, final: bool) -> Pieces:
        pieces = Pieces()
        while self._text:
            if self._drops_space:
                self._text = self._text.lstrip()
                self._drops_space = not self._text
            before = self._step
            self._step(pieces, final)
            if self._step == before:
                break
        return pieces

    def _start(self, pieces: Pieces, final: bool) -> None:
        text = self._text.lstrip()
        if self._form.may_think and text.startswith(THINK):
            self._text, self._drops_space = text[len(THINK) :], True
            self._step = self._thought
        elif self._form.may_think and not final and THINK.startswith(text):
            return
        elif self._form.calls == "llama" and text.startswith("{"):
            self._step = self._last_calls
        elif text or final:
            self._step = self._content

    def _thought(self, pieces: Pieces, final: bool) -> None:
        at = self._text.find(THINK_END)
        if at >= 0:
            pieces.reasoning += self._text[:at].rstrip()
            self._text, self._drops_space = self._text[at + len(THINK_END) :], True
            self._step = self._answer
        else:
            pieces.reasoning += self._passed(THINK_END, final)

    def _answer(self, pieces: Pieces, final: bool) -> None:
        """The start of what comes after thoughts; there is no second time for them."""
        if self._text:
            is_call = self._form.calls == "llama" and self._text.startswith("{")
            self._step = self._last_calls if is_call else self._content

    def _content(self, pieces: Pieces, final: bool) -> None:
        form = self._form.calls
        if form is None:
            pieces.content += self._text
            self._text = ""
            return
        at = self._text.find(START[form])
        if at >= 0:
            said = self._text[:at].rstrip()
            pieces.content += said
            self._text = self._text[len(said) :]  # with the space: it goes if this is a call
            self._step = self._marked_call if form == "hermes" else self._last_calls
        else:
            pieces.content += self._passed(START[form], final)

    def _marked_call(self, pieces: Pieces, final: bool) -> None:
        end = self._text.find(HERMES_END)
        if end < 0 and not final:
            return
        end = len(self._text) if end < 0 else end
        body = self._text[:end].lstrip().removeprefix(START["hermes"])
        end += len(HERMES_END)
        whole, self._text = self._text[:end], self._text[end:]
        self._take(pieces, "hermes", body, whole)
        self._step = self._content

    def _last_calls(self, pieces: Pieces, final: bool) -> None:
        """Calls that end with the answer."""
        form = self._form.calls
        if not final or form is None:
            return
        whole, self._text = self._text, ""
        marked = whole.lstrip().startswith(START[form])
        body = whole.lstrip().removeprefix(START[form])
        self._take(pieces, form, body, whole, only_known=not marked)
        self._step = self._content

    def _take(
        self, pieces: Pieces, form: ToolForm, body: str, whole: str, *, only_known: bool = False
    ) -> None:
        calls = calls_from(form, body)
        if calls is None or (only_known and not {name for name, _ in calls} <= self._form.names):
            pieces.content += whole
            return
        self._drops_space = True
        for name, arguments in calls:
            if self._called and not self._form.parallel:
                break
            self._called = True
            call = ToolCall(id=self._new_id(), name=name, arguments=arguments)
            pieces.calls = (*pieces.calls, call)

    def _passed(self, sign: str, final: bool) -> str:
        """Return the text that can be no part of a sign, nor the space before it."""
        passed = len(self._text)
        if not final:
            passed -= overlap(self._text, sign)
            passed = len(self._text[:passed].rstrip())
        text, self._text = self._text[:passed], self._text[passed:]
        return text
