from __future__ import annotations

import pytest

from host_tools.chat.demo.corpus import corpus
from host_tools.chat.demo.demo import demo_tokenizer
from host_tools.chat.demo.training import Recipe


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads that wait for each other in a busy machine make small steps slow."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text():
    """All that this Python has to say."""
    return corpus()


@pytest.fixture(scope="session")
def tokenizer(text):
    return demo_tokenizer(text, Recipe())
