"""The `cvae` command, and what answers requests to a packaged model.

Imports every room.
"""
