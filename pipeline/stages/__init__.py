"""The DVC stages: each reads its params and inputs, calls the numbers room, and writes its outputs.

They run in the project's folder, as `python -m pipeline.stages.NAME` or `cvae NAME`.
"""
