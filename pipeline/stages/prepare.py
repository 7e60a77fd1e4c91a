"""IDX files to one safetensors file of uint8 tensors: train, validation and test. A few seconds."""

from pipeline.base import console
from pipeline.base.params import load
from pipeline.base.paths import PREPARED, RAW
from pipeline.data import splits as data
from pipeline.data.download import DataParams
from pipeline.stages.saved import save_splits


def main() -> None:
    params = load(DataParams, "data")
    train, validation = data.split(*data.read_idx_pair(RAW, *data.FILES["train"]), params.validation_size, params.seed)
    test = data.as_split(*data.read_idx_pair(RAW, *data.FILES["test"]))
    save_splits(PREPARED, {"train": train, "validation": validation, "test": test})
    print(f"{PREPARED}: {len(train):,} train, {len(validation):,} validation, {len(test):,} test images")


if __name__ == "__main__":
    console.run(main)
