"""Many devices from one desk: who they are, who comes when, and when to stop."""
