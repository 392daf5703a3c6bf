"""Chat models on the workstation: from a Hugging Face folder to one ONNX file, without tracing."""
