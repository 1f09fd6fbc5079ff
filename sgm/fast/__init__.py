"""Fast paths for inference, beside the readable modules that they compute the same as.

`kernels` holds the operations between the matrix products, `unet` and `decoder` the networks built on them. They read
the modules' own parameters and keep no second copy of any.
"""
