"""One thin module for each DVC stage: params and files in, files out.

Imports every room but cli.
"""
