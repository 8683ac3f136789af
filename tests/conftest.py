"""Settings every test runs under, made before torch, MLflow or s3fs are imported."""

import os
import sys
from pathlib import Path

# Small tensors: a second thread per process costs more than it gives, and results repeat.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What DeepSpeed compiles belongs to this environment, not to the user's home.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A developer's own settings must not reach the tests.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MEZZOTINT_CACHE", "AWS_PROFILE"):
    os.environ.pop(name, None)
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
