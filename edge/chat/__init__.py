"""Chat: causal language models that answer token by token, for many conversations at once."""
