"""The same with MLServer: a runtime for the settings that bench_serving writes; numpy alone."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Echo(MLModel):
    """64 floats there and back."""

    async def load(self) -> bool:
        """Open nothing."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return what came."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", x)])
