#!/bin/sh
# The longer recipe, meant for an hour on two quiet cores: a wider model, nine times the epochs, a lower rate.
#   sh completion/long.sh
# It runs as an experiment, on top of what is committed; `dvc exp show` and `dvc metrics diff` compare it.
exec dvc exp run completion/dvc.yaml --name completion-long \
    -S completion.hidden=768 \
    -S completion.latent_size=48 \
    -S completion.epochs=140 \
    -S completion.network_epochs=60 \
    -S completion.learning_rate=0.001
