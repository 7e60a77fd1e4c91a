"""The objective, and fitting one model or many at once: tensors and params in, one Record an epoch out.

Imports base, data, model.
"""
