"""A model in, named figures out: the bound, samples and their metrics, the judge, what is wrong with a model.

Imports base, data, model, training.
"""
