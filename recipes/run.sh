#!/bin/sh
# Runs a recipe: a training of ten minutes or more. NAME.yaml in this folder says what it changes in params.yaml,
# and its results go to reports/recipes/NAME/.
#   sh recipes/run.sh samples
# It runs in a copy of the project, as the DVC experiment `recipe-NAME`, so that the default's models and reports do not
# change. The model is in MLflow (`cvae sample 0-9 --model runs:/RUN_ID`). Options of `dvc exp run` may follow the name,
# such as -S train.epochs=5.
set -euf
name=${1:-}
if [ ! -f "recipes/$name.yaml" ]; then
    known=$(ls recipes | sed -n 's/\.yaml$//p' | paste -s -d ' ' -)
    echo "error: there is no recipe '$name': sh recipes/run.sh NAME, in the project's folder; recipes: $known" >&2
    exit 2
fi
shift
case $name in
    completion) target=completion/dvc.yaml results="completion.json completions.png" ;;
    *) target=evaluate results="metrics.json figures/samplers.png" ;;
esac
changes=$(python -c '
import json, sys
from pipeline.base import console
from pipeline.base.params import read

def options():
    for section, values in read(sys.argv[1]).items():
        for key, value in values.items():
            text = json.dumps(value, separators=(",", ":"))
            print("-S", f"{section}.{key}={text}")

console.run(options, timed=False)' "recipes/$name.yaml")

# DVC keeps experiments in commits, which need a name
if ! { git config user.name && git config user.email; } >/dev/null 2>&1; then
    export GIT_AUTHOR_NAME=cvae GIT_AUTHOR_EMAIL=cvae GIT_COMMITTER_NAME=cvae GIT_COMMITTER_EMAIL=cvae
fi
dvc exp remove "recipe-$name" >/dev/null 2>&1 || true
# shellcheck disable=SC2086
dvc exp run --temp --name "recipe-$name" $changes "$@" "$target"

folder=reports/recipes/$name
mkdir -p "$folder"
for result in $results; do
    dvc get --quiet --force --rev "recipe-$name" --out "$folder/$(basename "$result")" . "reports/$result"
done
echo "written to $folder/: $results"
