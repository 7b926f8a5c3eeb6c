"""The API of AUTOMATIC1111's web UI and of its ControlNet extension: their JSON becomes our words, and ours theirs.

The translations are pure: no torch, no web framework. `routes*.py` are the door.
"""
