"""Optuna's gRPC storage proxy for the database that OPTUNA_STORAGE names, until Ctrl-C.

    OPTUNA_STORAGE=postgresql://USER:PASSWORD@HOST/DATABASE python -m pipeline.study.serve --port 13000

Workers then use OPTUNA_STORAGE=grpc://HOST:13000. The proxy neither encrypts nor asks who calls: it serves this machine
alone, unless --host names an address of a network that you trust.
"""

import argparse
import gc
from pathlib import Path

import optuna
from optuna.storages import get_storage, run_grpc_proxy_server

from pipeline.base import console
from pipeline.base.addresses import shown
from pipeline.base.errors import UserError
from pipeline.study import storage
from pipeline.study.proxy import PORT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=PORT)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage.storage_url(Path())
    with storage.one_line(url), storage.quiet():
        storage.has_studies(url)  # raises UserError for MLflow's database
        with storage.turn(url):
            database = get_storage(storage.open_storage(url))
        print(f"{shown(url)} is served on grpc://{options.host}:{options.port}; Ctrl-C ends it", flush=True)
        try:
            run_grpc_proxy_server(database, host=options.host, port=options.port)
        except RuntimeError as error:  # Failed to bind
            gc.collect()
            raise UserError(
                f"port {options.port} of {options.host} can't be used: choose another with --port"
            ) from error


if __name__ == "__main__":
    console.run(main)
