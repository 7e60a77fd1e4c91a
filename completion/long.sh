#!/bin/sh
# The longer recipe: three times the epochs, all test images. docs/completion.md reckons its time.
#   sh completion/long.sh
# It runs in a copy of the project, as the experiment `completion-long`, so that the default's models and reports stay
# as they are; what is measured comes back as reports/completion_long.json, the picture beside it, and the models are
# in MLflow (`cvae complete --model runs:/RUN_ID`). More of DVC's options may follow, such as -S completion.epochs=60.
set -eu
base=$(git rev-parse HEAD)  # what is committed meanwhile changes nothing
dvc exp remove completion-long >/dev/null 2>&1 || true
dvc exp run --temp --name completion-long \
    -S completion.epochs=24 \
    -S completion.network_epochs=10 \
    -S completion.drawn=0.25 \
    -S completion.ema=0.999 \
    -S evaluate_completion.images=null \
    "$@" completion/dvc.yaml
trap 'rm -f reports/.completion*.part' EXIT
found=refs/exps/$(echo "$base" | sed 's|^..|&/|')/completion-long
for name in completion.json completions.png; do
    git show "$found:reports/$name" > "reports/.$name.part"
done
mv reports/.completion.json.part reports/completion_long.json
mv reports/.completions.png.part reports/completions_long.png
echo "reports/completion_long.json and reports/completions_long.png written"
