#!/usr/bin/env bash
# What the tests need beyond PyPI: Debian packages where missing, and the npm clients by lock file.
set -euo pipefail
cd "$(dirname "$0")"

missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v ip >/dev/null || missing+=(iproute2)
command -v node >/dev/null || missing+=(nodejs npm)
command -v turnutils_uclient >/dev/null || missing+=(coturn)
command -v janus >/dev/null || missing+=(janus)
if ((${#missing[@]})); then
  echo "» apt-get install ${missing[*]}"
  as_root=()
  if ((EUID != 0)); then as_root=(sudo); fi
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

echo "» npm ci"
npm ci --silent --no-audit --no-fund
