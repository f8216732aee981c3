#!/bin/sh
# Fuzz the targets named in $TARGETS with atheris, one after another, each for $RUNS inputs or $SECONDS (0: no limit).
# Atheris is fetched into the environment $1 when it is not there; the corpora grow in $CORPUS.
set -eu
venv=$1
"$venv/bin/python" -c 'import atheris' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'atheris==3.0.0'
for target in ${TARGETS:-decode pipeline streams}; do
    "$venv/bin/python" -m tests.fuzz.run "$target" --runs "${RUNS:-1000000}" --seconds "${SECONDS_EACH:-0}" \
        --corpus "${CORPUS:-.fuzz}/$target"
done
