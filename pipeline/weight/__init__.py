"""What a KL weight means, predicts and does.

Imports base to measure.
"""
