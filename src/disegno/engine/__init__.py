"""The engine: a Request becomes pictures. `generate.py` is the door, `batch.py` steps many requests at once."""
