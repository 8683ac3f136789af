"""MLflow: late uploads and the web interface."""
