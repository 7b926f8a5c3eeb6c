"""What can be trained, one recipe a file. Other packages add theirs by the entry point group `disegno.recipes`."""

from disegno.core.registry import Registry

RECIPES = Registry("recipe", "disegno.training.recipes", "disegno.recipes")
