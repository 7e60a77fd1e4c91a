"""Optuna's search over KL weights; the only room that imports optuna.

Imports base to measure.
"""
