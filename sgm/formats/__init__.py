"""Weights on disk: files of tensors, and what other projects call them."""
