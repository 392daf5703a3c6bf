"""The prompts of `/v1/completions`: texts, or tokens that the client made."""

from __future__ import annotations

from edge.chat.openai_request import MAX_CHOICES, CompletionRequest
from edge.chat.prompt import Prompt
from edge.chat.tokenizer import ChatTokenizer
from edge.errors import InputError
from edge.openai_form import FieldError


def completion_prompts(request: CompletionRequest, tokenizer: ChatTokenizer) -> list[Prompt]:
    """Return the prompts of a request; raises FieldError."""
    given = request.prompt
    prompts: list[str | list[int]] = []
    if isinstance(given, str):
        prompts = [given]
    else:
        texts = [one for one in given if isinstance(one, str)]
        tokens = [one for one in given if isinstance(one, int)]
        lists = [one for one in given if isinstance(one, list)]
        if sum(map(bool, (texts, tokens, lists))) > 1:
            raise FieldError("prompt mixes texts and tokens; send one kind", "prompt")
        prompts = [tokens] if tokens else [*texts, *lists]
    if not 0 < len(prompts) * request.choices <= MAX_CHOICES:
        raise FieldError(
            f"prompt holds {len(prompts)} and n is {request.choices}; ask for 1..{MAX_CHOICES} "
            "answers at once",
            "prompt",
        )
    try:
        return [_prompt(prompt, tokenizer) for prompt in prompts]
    except InputError as error:
        raise FieldError(str(error), "prompt") from error


def _prompt(prompt: str | list[int], tokenizer: ChatTokenizer) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(text=prompt, tokens=tokenizer.encode(prompt, special=True))
    written = b"".join(map(tokenizer.bytes_of, prompt))
    return Prompt(text=written.decode("utf-8", "replace"), tokens=prompt)
