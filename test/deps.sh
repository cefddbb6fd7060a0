#!/usr/bin/env bash
# Installs what the tests need, from the distribution, when it is missing.
# As root it uses apt-get and says so; otherwise it only names what is missing.
# Usage: test/deps.sh [test|bench]   (bench adds what make bench compares with)
set -euo pipefail
what=${1:-test}
declare -A need=(
  [memcached]=memcached [redis-server]=redis-server [fio]=fio [mkfs.xfs]=xfsprogs [mkfs.btrfs]=btrfs-progs
  [mkfs.ext4]=e2fsprogs [fusermount3]=fuse3 [fuse2fs]=fuse2fs [qemu-img]=qemu-utils
  [socat]=socat [xxd]=xxd [sqlite3]=sqlite3 [unshare]=util-linux [git]=git
)
if [ "$what" = bench ]; then
  need[nbdfuse]=libnbd-bin
  need[nbdkit]=nbdkit
  need[qemu-storage-daemon]=qemu-system-common
  need[s3backer]=s3backer
fi
PATH=$PATH:/usr/sbin:/sbin
missing=()
for tool in "${!need[@]}"; do
  command -v "$tool" >/dev/null 2>&1 || missing+=("${need[$tool]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "deps: missing packages: ${missing[*]} (install them; tests that need them will say that they skip)" >&2
  [ -z "${CI:-}" ] || exit 1
  exit 0
fi
echo "deps: installing with apt-get: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# A package's own server must not start: the tests start private ones.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
