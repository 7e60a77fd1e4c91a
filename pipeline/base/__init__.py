"""Errors, files, params, paths, the device and words on a terminal: what every other room may use.

Imports nothing of ours.
"""
