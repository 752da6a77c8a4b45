#!/usr/bin/env bash
# Run timm's own model tests on our models. The tests come from the source distribution of the installed timm, which is
# kept in .cache/ and never committed. Usage: tests/timm_models.sh [pytest options].
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv/bin/python"
version="$("$python" -c 'from importlib.metadata import version; print(version("timm"))')"
cache="$PWD/.cache/timm-$version"

if [ ! -f "$cache/tests/test_models.py" ]; then
    # built up aside and moved at the end, so that an interrupted download is not taken for a whole one
    mkdir -p .cache
    partial="$(mktemp -d "$cache.XXXXXX")"
    trap 'rm -rf "$partial"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check \
        --no-deps --no-binary timm "timm==$version" --dest "$partial"
    # tests and pytest's settings only: beside them, the package would be imported in place of the installed one
    tar -xzf "$partial/timm-$version.tar.gz" -C "$partial" --strip-components 1 \
        "timm-$version/tests" "timm-$version/pyproject.toml"
    rm -rf "$cache"
    mv "$partial" "$cache"
fi

# pytest exits with 5, and this script with it, when the filter leaves no test
cd "$cache"
exec "$python" -m pytest -c pyproject.toml -p timm_longtail -p no:cacheprovider -q \
    -k 'cifar or bcl or glmc' "$@" tests/test_models.py
