"""`cvae export` writes trained models as ONNX files, for other programs and languages."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import COMPLETER, CURVE, MODEL

MODELS = "a safetensors file, or runs:/RUN_ID of MLflow; several are possible"


def export(
    form: Annotated[Literal["onnx"], typer.Option("--format", help="of the files")] = "onnx",  # noqa: ARG001 (one yet)
    model: Annotated[list[str] | None, typer.Option(metavar="MODEL", help=MODELS)] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="where the files go")] = Path("onnx"),
) -> None:
    """Write trained models as ONNX files.

    They are the decoder, the encoder, the fitted sampler and the completer.

    If no model is named: models/cvae.safetensors, and curve and completer where they are trained. Each file is compared
    with torch by onnxruntime before any is written. Its inputs and outputs are printed, and stand in its metadata.

    \b
    cvae export
    cvae export --model models/curve.safetensors --out elsewhere
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise UserError(f"the export needs {name}, which is not installed: `pip install -e '.[onnx]'`")

    from pipeline.base.files import replacing
    from pipeline.cli.graphs import OPSET, graph, parts_of
    from pipeline.cli.options import model_file

    names = model or [str(MODEL), *(str(path) for path in (CURVE, COMPLETER) if path.exists())]
    graphs = [graph(part) for name in names for part in parts_of(model_file(name))]
    for one in graphs:
        path, content = out / f"{one.name}.onnx", one.model.SerializeToString()
        with replacing(path) as part:
            part.write_bytes(content)
        print(f"{path}, {len(content) / 1e6:.1f} MB, {one.difference:.0e} from torch: {one.signature}")
    print(f"opset {OPSET}; a batch may have any size")
