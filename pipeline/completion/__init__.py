"""The rest of a picture of which a part is seen.

Imports base to measure.
"""
