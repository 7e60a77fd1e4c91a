"""The console command `cvae`. This project's folder comes first: PYTHONPATH may name another `pipeline`."""

import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from pipeline.cli.main import main as run

    run()
