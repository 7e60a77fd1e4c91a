"""IDX files to one safetensors file of uint8 tensors: train, validation and test. A few seconds."""

from pathlib import Path

from pipeline import console, data
from pipeline.download import DataParams
from pipeline.files import replacing
from pipeline.params import load

RAW = Path("data/raw")
PREPARED = Path("data/prepared/mnist.safetensors")


def main() -> None:
    params = load(DataParams, "data")
    train, validation = data.split(*data.read_idx_pair(RAW, *data.FILES["train"]), params.validation_size, params.seed)
    test = data.as_split(*data.read_idx_pair(RAW, *data.FILES["test"]))
    with replacing(PREPARED) as part:
        data.save(part, {"train": train, "validation": validation, "test": test})
    print(f"{PREPARED}: {len(train):,} train, {len(validation):,} validation, {len(test):,} test images")


if __name__ == "__main__":
    console.run(main)
