"""MLflow: runs and what they record, the store they are kept in, packaged models, the UI. The only room with mlflow.

Imports base alone.
"""
