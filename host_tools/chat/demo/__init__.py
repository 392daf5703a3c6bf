"""A chat model that talks, made here: trained in minutes on text that comes with Python."""
