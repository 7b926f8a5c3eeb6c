"""Samplers: one family a file, each a coroutine. See `base.py` for what a sampler is, `catalogue.py` for the list."""
