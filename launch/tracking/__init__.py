"""The local MLflow store: late uploads and the dashboard."""
