"""`edge-agent bench` and `profile`: load on an agent, the layers of a model, and advice."""
