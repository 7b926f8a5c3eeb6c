"""What can be trained, one recipe a file; `training/recipe.py` says what a recipe is. One of them is called `base`.

Other packages add theirs by the entry point group `disegno.recipes`.
"""

from disegno.core.registry import Registry

RECIPES = Registry("recipe", "disegno.training.recipes", "disegno.recipes", not_members=frozenset({"__init__"}))
