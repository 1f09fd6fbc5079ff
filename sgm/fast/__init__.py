"""Fast paths for inference: the same results as the readable modules, with fewer passes over memory.

`ops` chooses the operations by device; `unet` and `decoder` are built on them. They read the modules' own parameters
and keep no second copy of any.
"""
