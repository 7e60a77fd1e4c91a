"""Downloads the four MNIST files into data/raw. A few seconds; files that are there already are kept."""

from pathlib import Path

from pipeline.base import console
from pipeline.base.params import load
from pipeline.base.paths import RAW
from pipeline.data import download


def main() -> None:
    params = load(download.DataParams, "data")
    checksums = download.read_checksums(Path(params.checksums))
    with console.bar("download", len(checksums)) as bar:

        def tell(name: str, received: int) -> None:
            bar(list(checksums).index(name), "", f"{name}: {received / 1e6:.1f} MB")

        source = download.fetch(RAW, download.mirrors(params.mirrors), checksums, tell)
        bar(len(checksums), "", "verified")
    print(f"{RAW}: four files, checked by SHA-256, {f'from {source}' if source else 'there already'}")


if __name__ == "__main__":
    console.run(main)
