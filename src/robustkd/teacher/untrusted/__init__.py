"""Reading a file that may be an attack.

The caller's side is :mod:`robustkd.teacher.untrusted.quarantine`. It hands the open file to a
process of its own (:mod:`~robustkd.teacher.untrusted.sandbox`), which gives up what it does not
need (:mod:`~robustkd.teacher.untrusted.limits`), finds the tensors' bytes and writes them as plain
safetensors.

Nothing is imported here, and nothing but the standard library in the modules that the child
process runs: it starts in a tenth of a second, and neither torch nor numpy is ever in the same
memory as a hostile file.
"""
