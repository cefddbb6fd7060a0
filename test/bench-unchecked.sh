#!/usr/bin/env bash
# make bench-unchecked: what checksums, presence map and fences cost. kvbfs as it is
# beside a build without them (tag kvbfs_unchecked, which must never hold data), in
# alternating rounds of kvbfs bench, on the image and on a loop device.
#
# Usage: test/bench-unchecked.sh BIN   Environment: ROUNDS=5
set -euo pipefail
bin=$(readlink -f "${1:?path of the kvbfs binary}")
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-5}
work=$(mktemp -d)
mcpid=
cleanup() {
  trap '' INT TERM
  "$work/kvbfs" umount "$work/mnt" >/dev/null 2>&1 || umount -l "$work/mnt" 2>/dev/null || true
  [ -z "$mcpid" ] || kill "$mcpid" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
CGO_ENABLED=0 go build -trimpath -tags kvbfs_unchecked -o "$work/kvbfs" ./cmd/kvbfs
export KVBFS_STATE_DIR=$work/state KVBFS_RUNTIME_DIR=$work/run
mkdir "$work/mnt"
port=$((20000 + RANDOM % 20000))
memcached -u root -l 127.0.0.1 -p $port -U 0 -m 1536 -M -F -k -t 4 -R 128 -c 4096 \
  -o slab_sizes=96-192-4176-4240-8352,slab_automove=0 2>/dev/null &
mcpid=$!
for _ in $(seq 100); do (echo version >/dev/tcp/127.0.0.1/$port) 2>/dev/null && break; sleep 0.05; done
store=memcached://127.0.0.1:$port
"$work/kvbfs" mount "$work/mnt" --transport auto --store "$store" >/dev/null
"$work/kvbfs" volume create v --size 512M --store "$store" >/dev/null
"$bin" bench --transport auto --rounds "$rounds" --size 512M --beside "unchecked=$work/mnt/v" \
  --only '^(kvbfs/[a-z]*|unchecked)/(file|loop)/rand(read|write)-4k-qd(32x2|1x1)$'
