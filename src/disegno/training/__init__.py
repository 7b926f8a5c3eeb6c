"""Teaching: pairs become a file that the engine draws with. `base.py` has the words; `trainer.py` the one loop."""
