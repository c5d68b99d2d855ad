#!/usr/bin/env bash
# What tests/test_web_browser.py needs beside Python: Chromium, where this may install it, and npm's package onnxruntime-web.
# Whatever cannot be had is named, and the tests that need it are skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^VERSION = "\(.*\)"/\1/p' cond_ddpm/web/runtime.py)

if ! command -v chromium chromium-browser google-chrome > /dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    (apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core) > /dev/null 2>&1
  fi
  command -v chromium > /dev/null || echo "no Chromium, and it could not be installed: its tests are skipped"
fi

folder=build/onnxruntime-web
if ! grep -qs "\"version\": \"$version\"" "$folder/package.json"; then
  rm -rf "$folder" && mkdir -p "$folder"
  (cd "$folder" && npm pack --silent "onnxruntime-web@$version" && tar -xzf ./*.tgz --strip-components=1 && rm ./*.tgz) > /dev/null 2>&1
  [ -d "$folder/dist" ] || echo "no onnxruntime-web $version, and npm could not fetch it: its tests are skipped"
fi
exit 0
