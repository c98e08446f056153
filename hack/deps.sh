#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that are missing, and says so first; does nothing where all are there.
set -euo pipefail
packages=(
    # building: the packet programs, bindgen, libbpf and its libraries
    build-essential clang-19 libclang1-19 llvm-19 libelf-dev zlib1g-dev pkg-config git ca-certificates
    # images
    buildah
    # the lab
    busybox-static containerd containernetworking-plugins conntrack iproute2 iptables nftables openssl procps runc util-linux
    # the tests
    e2fsprogs ethtool iputils-ping jq tcpdump
)
missing=()
for package in "${packages[@]}"; do
    if ! dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$'; then
        missing+=("$package")
    fi
done
if [ "${#missing[@]}" -gt 0 ]; then
    echo "installing from Debian: ${missing[*]}"
    sudo=$([ "$(id -u)" -eq 0 ] || echo sudo)
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y --no-install-recommends "${missing[@]}"
fi
for tool in 'cargo https://rustup.rs' 'go https://go.dev/dl (1.26 or later)'; do
    if ! command -v "${tool%% *}" > /dev/null; then
        echo "missing: ${tool%% *}; get it from ${tool#* }"
        exit 1
    fi
done
