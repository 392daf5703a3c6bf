"""Updates from a channel: a TUF repository of static files; see docs/trust.md."""
