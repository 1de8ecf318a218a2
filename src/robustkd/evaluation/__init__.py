"""Evaluation of models: clean accuracy, attack success rate and robust accuracy."""
