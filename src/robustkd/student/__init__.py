"""Distilling a student and hardening it against universal transformations."""
