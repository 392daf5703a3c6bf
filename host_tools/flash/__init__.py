"""The agent and a bundle onto a device: over SSH, by Ansible, or into an image."""

# What of edge-kit an agent on a device has.
DEFAULT_EXTRAS = ("ort", "chat", "update")
