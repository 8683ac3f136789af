"""Runs the stages of a pipeline in one process: `python stages.py PIPELINE ROOT [KEY=VALUE]...`.

One process runs them all, so that a test of many stages imports the libraries once.
"""

import sys
from pathlib import Path

import yaml

from launch.errors import run_command
from launch.pipeline.config import load_pipeline, resolve_stage, stage_order
from launch.pipeline.stage_types import execute_stage
from launch.progress import Reporter


def main() -> None:
    pipeline, root = load_pipeline(sys.argv[1], sys.argv[3:]), Path(sys.argv[2])
    root.mkdir(parents=True)
    tree = yaml.safe_dump(pipeline.model_dump(mode="json"), sort_keys=False)
    (root / "pipeline.yaml").write_text(tree)
    for name in stage_order(pipeline):
        with Reporter(None, shows=False) as reporter:
            execute_stage(resolve_stage(pipeline, name, root), root / name, None, reporter, root)


if __name__ == "__main__":
    run_command(main)  # a thread of gloo may abort where the interpreter ends
