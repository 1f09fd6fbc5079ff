"""Weights on disk: files of tensors, and the names of tensors in diffusers' format."""
