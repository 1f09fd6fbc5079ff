"""Fast paths for inference, beside the readable modules that they compute the same as.

`ops` chooses the operations between the matrix products by device, `unet` and `decoder` are built on them. They read
the modules' own parameters and keep no second copy of any.
"""
