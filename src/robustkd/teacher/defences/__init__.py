"""Defences that clean a network, one file each."""
