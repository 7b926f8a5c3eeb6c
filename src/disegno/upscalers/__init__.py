"""Upscalers: networks that enlarge pictures, one kind a file; siblings never import each other."""

from disegno.core.registry import Registry

UPSCALERS = Registry("upscaler", "disegno.upscalers", "disegno.upscalers")
