#!/bin/sh
# A study by eight Slurm tasks, each with a GPU of its own, which share one database:
#   sbatch recipes/machines/slurm.sh
# ~/cvae.env (mode 600) exports OPTUNA_STORAGE, MLFLOW_TRACKING_URI and S3's keys. docs/machines.md explains the rest.
#SBATCH --job-name=cvae-tune
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu
. "$HOME/cvae.env"
# Each task works in a clone of its own: the files of a study are written by every task that sees its end.
git clone --quiet "$SLURM_SUBMIT_DIR" "$TMPDIR/cvae" && cd "$TMPDIR/cvae"
. "$SLURM_SUBMIT_DIR/.venv/bin/activate"
cp "$SLURM_SUBMIT_DIR/.dvc/config.local" .dvc/ 2>/dev/null || true  # the remote, if it is not in .dvc/config
dvc pull prepare judge curve
PYTHONPATH=$PWD exec python -m pipeline.cli tune
