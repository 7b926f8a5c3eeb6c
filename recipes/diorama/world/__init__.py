"""The small world that diorama is trained on: soft 3D objects in drawn places, with exact captions and maps."""
