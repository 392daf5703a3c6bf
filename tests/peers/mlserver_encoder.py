"""The sentence encoder with MLServer; its adaptive batching joins requests before `predict`."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.peers.encoder import embeddings, open_encoder


class Encoder(MLModel):
    """Token ids in, embeddings out."""

    async def load(self) -> bool:
        """Open the graph."""
        self.session = open_encoder()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return an embedding for each sentence."""
        y = embeddings(self.session, NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output("embedding", y)
        return InferenceResponse(model_name=self.name, outputs=[output])
