#!/bin/sh
# The longer recipe: a wider model, ten times the epochs, a lower rate. Reckoned at 50 to 60 minutes on two quiet cores;
# not yet measured.
#   sh completion/long.sh
# It runs as an experiment, on top of what is committed; `dvc exp show` and `dvc metrics diff` compare it.
exec dvc exp run completion/dvc.yaml --name completion-long \
    -S completion.hidden=768 \
    -S completion.latent_size=48 \
    -S completion.epochs=120 \
    -S completion.network_epochs=60 \
    -S completion.learning_rate=0.001
