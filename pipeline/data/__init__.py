"""MNIST: downloaded, read, split, and as tensors on a device.

Imports base.
"""
