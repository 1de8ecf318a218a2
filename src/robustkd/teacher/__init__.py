"""From an untrusted file to a teacher that a student can learn from.

This module imports nothing: the child process that reads hostile files imports this package and
must not load torch.
"""
