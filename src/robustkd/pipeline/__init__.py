"""The main job: from an untrusted teacher and clean images to a student in a run folder."""
