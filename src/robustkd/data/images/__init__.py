"""Listing, decoding, splitting and streaming image files."""
