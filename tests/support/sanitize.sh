#!/usr/bin/env bash
# The native code under gcc's address and undefined-behaviour sanitizers: built apart, in build/sanitize, then its tests.
# Leaks are not looked for (the interpreter itself has some): the tests look at counters that must return to zero.
set -euo pipefail
cd "$(dirname "$0")/../.."
copy=$PWD/build/sanitize python=$PWD/.venv/bin/python

mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- | tar -x -C "$copy"
cd "$copy"
echo "» building with sanitizers (some minutes the first time)"
TORPOR_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace -j "$(nproc)"

# Not captured (-s), so that the report of a process that ends in the middle of a test is seen.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc PYTHONPATH=$copy
exec "$python" -m pytest -q -s -p no:cacheprovider "${@:-tests/unit/hibernation}"
