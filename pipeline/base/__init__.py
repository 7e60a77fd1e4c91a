"""Errors, files, params, paths, the device and the terminal: what every other room may use.

Imports no other room.
"""
