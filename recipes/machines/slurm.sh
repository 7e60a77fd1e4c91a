#!/bin/sh
# A study by eight Slurm tasks, each with a GPU of its own, which share one database:
#   sbatch recipes/machines/slurm.sh     # in the project's folder, on a disk that all nodes see
# It runs the commit that is checked out, without your uncommitted changes. ~/cvae.env (mode 600) exports OPTUNA_STORAGE,
# MLFLOW_TRACKING_URI and S3's keys. docs/machines.md explains the rest.
#SBATCH --job-name=cvae-tune
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu
. "$HOME/cvae.env"
. "$SLURM_SUBMIT_DIR/.venv/bin/activate"
# Each task works in a clone of its own, since every task that sees the study's end writes its files. After a requeue it
# finds the same clone again, with what MLflow has not got yet.
work=$SLURM_SUBMIT_DIR/.cvae/slurm/$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID
if [ ! -d "$work" ]; then
    rm -rf "$work.new"  # of a task that was killed
    git clone --quiet "$SLURM_SUBMIT_DIR" "$work.new"
    cp "$SLURM_SUBMIT_DIR/.dvc/config.local" "$work.new/.dvc/" 2>/dev/null || true  # a remote that git does not know
    mv "$work.new" "$work"
fi
cd "$work"
dvc pull prepare judge curve
PYTHONPATH=$PWD exec python -m pipeline.cli tune
