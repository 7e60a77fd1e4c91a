"""Figures, picture files and pictures on a terminal, from arrays and tables.

Imports base.
"""
