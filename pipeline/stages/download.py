"""Downloads the four MNIST files into data/raw. A few seconds; files that are there already are kept."""

import os
from pathlib import Path

from pipeline.base import console
from pipeline.base.params import load
from pipeline.base.paths import RAW
from pipeline.data import download


def main() -> None:
    params = load(download.DataParams, "data")
    checksums = download.read_checksums(Path(params.checksums))
    with console.transfer() as progress:
        source = download.fetch(RAW, download.mirrors(params.mirrors, os.environ), checksums, progress)
    print(f"{RAW}: four files, checked by SHA-256, {f'from {source}' if source else 'there already'}")


if __name__ == "__main__":
    console.run(main)
