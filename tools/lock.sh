#!/bin/sh
# Resolve every dependency afresh in a throw-away environment and write constraints.txt.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check '.[dev,postgres,webhook,bench]' hatchling
{
    echo "# Made by make lock: the exact versions that make install uses."
    "$dir/venv/bin/python" -m pip freeze --exclude homing | grep -v ' @ ' | LC_ALL=C sort -f
} >constraints.txt
