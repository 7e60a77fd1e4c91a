"""Arrays and tables in, pictures out.

Imports base.
"""
