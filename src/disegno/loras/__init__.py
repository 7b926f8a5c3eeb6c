"""Style LoRAs on an open model: read in every dialect of the field, merged into copies of the layers that they change.

The model's own layers are never written to: the copies stand in for them during an evaluation, and are gone after it.
"""
