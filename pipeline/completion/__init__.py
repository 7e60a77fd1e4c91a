"""Completion: samples of the hidden part of a picture, given the visible part.

Imports base to measure.
"""
