"""Reading of files that may be attacks.

The entry point is :mod:`robustkd.teacher.untrusted.quarantine`. It passes the open file to a child
process (:mod:`~robustkd.teacher.untrusted.sandbox`), which drops its privileges
(:mod:`~robustkd.teacher.untrusted.limits`), locates the tensors and writes them as plain
safetensors.

This module imports nothing, and the modules that the child process runs import the standard library
only. The child starts in a tenth of a second, and neither torch nor numpy is ever loaded in a
process that parses a hostile file.
"""
