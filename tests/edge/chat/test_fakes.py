import pytest

from tests.edge.chat.decoder_contract import CONTEXT, LANES, DecoderContract, Open
from tests.edge.chat.fakes import FakeDecoder


class TestFakeDecoder(DecoderContract):
    tolerance = 0.0

    @pytest.fixture
    def open_decoder(self) -> Open:
        return lambda: FakeDecoder(lanes=LANES, context=CONTEXT)
