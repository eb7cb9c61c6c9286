#!/usr/bin/env bash
# Text to image with TaylorSeer: `hasten generate` under the name of the script that it takes the place of.
#
#   scripts/run_taylorseer_diffusers_pure.sh --prompt "a red circle left of a blue square" --steps 50
#
# Works from any folder and passes every flag on; images go to ./outputs unless --out says otherwise.
set -euo pipefail

# Where the script really is, also when it is called through a link (old macOS has no `readlink -f`).
script="$(readlink -f -- "${BASH_SOURCE[0]}" 2>/dev/null || printf '%s' "${BASH_SOURCE[0]}")"
root="$(cd -- "$(dirname -- "$script")/.." && pwd)"

if [[ -x "$root/.venv/bin/python" ]] && "$root/.venv/bin/python" -c 'import hasten' 2>/dev/null; then
  exec "$root/.venv/bin/python" -m hasten generate "$@"
elif command -v hasten >/dev/null; then
  exec hasten generate "$@"
fi
echo "error: hasten is not installed: run 'make -C $root demo', or 'pip install $root'" >&2
exit 2
