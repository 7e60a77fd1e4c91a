"""MLflow: runs, their outbox, the local store, the page, packaged models. The only room that imports mlflow.

Imports base.
"""
