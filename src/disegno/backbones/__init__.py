"""Backbones: one model family a file; siblings never import each other."""

from disegno.core.registry import Registry

BACKBONES = Registry("backbone", "disegno.backbones", "disegno.backbones", frozenset({"__init__", "base", "miniature"}))
