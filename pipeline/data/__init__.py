"""MNIST: fetched, checked, parsed, split and augmented, as tensors on a device.

Imports base.
"""
