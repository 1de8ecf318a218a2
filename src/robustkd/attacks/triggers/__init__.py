"""Triggers: fixed changes of an image that an attack implants."""
