"""Backbones: one model family a file; siblings never import each other."""

from disegno.core.registry import Registry

_NOT_MEMBERS = frozenset({"__init__", "base", "miniature", "miniature_sd2", "miniature_sd3", "miniature_sdxl"})

BACKBONES = Registry("backbone", "disegno.backbones", "disegno.backbones", _NOT_MEMBERS)
