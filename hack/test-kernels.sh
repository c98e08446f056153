#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# test-kernels.sh [VERSION...]: boots Debian's kernels in virtual machines, by emulation where there is no KVM, and runs
# in them the tests that touch the kernel. Each machine is a kernel and an initramfs made here: busybox, the modules
# that the tests need, the tests' binaries and what those need. What happened is in target/kernels/VERSION.log.
# KERNEL_TESTS='packets attach' runs these only.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/target/kernels
mkdir -p "$work"

# version suite: the kernel of that Debian release; the newest package of the version is taken.
kernels=('5.10 bullseye' '6.1 bookworm' '6.12 trixie')
modules=(veth bridge sch_ingress cls_bpf sctp nft_chain_nat nft_nat nft_masq nft_ct nft_fib_ipv4 nft_fib_ipv6 nf_conntrack_netlink)
programs=(busybox ethtool ip nft tc)
read -ra tests <<< "${KERNEL_TESTS:-agree attach datapath interfaces packets quotas sctp services traffic}"
# Longer than the slowest machine takes; one that hangs ends here.
limit=${KERNEL_TEST_SECONDS:-3600}

if [ "$#" -eq 0 ]; then
    set -- $(printf '%s\n' "${kernels[@]}" | cut -d' ' -f1)
fi

install_tools() {
    local package missing=()
    for package in qemu-system-x86 cpio ethtool kmod xz-utils iproute2 nftables busybox-static; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    echo "installing from Debian: ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > "$work/install.log"
}

# apt with lists of its own, so that the machine's are left alone. The mirror is the one that the machine uses.
private_apt() {
    local command=$1
    shift
    "$command" -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/apt/lists" -o Dir::State::status="$work/apt/status" -o Dir::Cache="$work/apt/cache" \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

update_lists() {
    local sites mirror security entry suite key='signed-by=/usr/share/keyrings/debian-archive-keyring.gpg'
    [ -z "$(find "$work/apt/lists" -name '*_Packages*' -mtime -7 2>/dev/null | head -n 1)" ] || return 0
    sites=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages')
    mirror=$(sed -n '\:debian/\?$: { p; q }' <<< "$sites")
    security=$(sed -n '\:debian-security/\?$: { p; q }' <<< "$sites")
    [ -n "$mirror" ] && [ -n "$security" ] || { echo 'failed to find a Debian mirror among the sources of apt'; return 1; }
    mkdir -p "$work"/apt/{lists/partial,cache/archives/partial}
    : > "$work/apt/status"
    for entry in "${kernels[@]}"; do
        suite=${entry#* }
        printf 'deb [%s] %s %s main\ndeb [%s] %s %s-security main\n' "$key" "$mirror" "$suite" "$key" "$security" "$suite"
    done > "$work/apt/sources.list"
    private_apt apt-get update -qq
}

# The image's package of a version: what the newest linux-image-amd64 of it depends on.
package_of() {
    private_apt apt-cache show linux-image-amd64 | awk -v version="$1" '
        /^Version: / { wanted = index($2, version ".") == 1 }
        /^Depends: / && wanted && !found++ { print $2 }'
}

fetch_kernel() {
    local version=$1 package
    package=$(package_of "$version")
    [ -n "$package" ] || { echo "Debian has no kernel $version"; return 1; }
    [ "$(cat "$work/$version/package" 2>/dev/null)" != "$package" ] || return 0
    echo "fetching $package"
    rm -rf "${work:?}/$version"
    mkdir -p "$work/$version/deb"
    (cd "$work/$version" && private_apt apt-get -q -o APT::Sandbox::User=root download "$package" > /dev/null && dpkg-deb -x ./*.deb deb && rm ./*.deb)
    # Modules lie in /lib or /usr/lib, as the release has it.
    [ -d "$work/$version/deb/lib" ] || ln -s usr/lib "$work/$version/deb/lib"
    depmod -b "$work/$version/deb" "$(release_of "$version")"
    echo "$package" > "$work/$version/package"
}

release_of() {
    ls "$work/$1/deb/lib/modules"
}

# build_tests KIND PACKAGE ARGUMENTS...: the tests' binaries in target/kernels/tests-KIND; what cargo prints stands in
# build-KIND.log.
build_tests() {
    local kind=$1 package=$2 name binary
    shift 2
    mkdir -p "$work/tests-$kind"
    cargo test --no-run --package "$package" "$@" 2>&1 | tee "$work/build-$kind.log" |
        sed -n 's/^ *Executable tests\/\([a-z]*\).* (\(.*\))$/\1 \2/p' |
        while read -r name binary; do
            strip -o "$work/tests-$kind/$name" "$binary"
        done || { tail -n 50 "$work/build-$kind.log"; return 1; }
}

build_all_tests() {
    local early=(--features wardline-bpf/ingress-ifindex-from-mark)
    rm -rf "$work"/tests-{plain,early}
    build_tests plain wardline-bpf --test packets
    build_tests plain wardline-node --features sctp-tests \
        --test agree --test attach --test datapath --test interfaces --test quotas --test sctp --test services --test traffic
    # Before 5.16 test runs need programs of their own (bpf/prog/ingress_ifindex_from_mark.h).
    build_tests early wardline-bpf --test packets "${early[@]}"
    build_tests early wardline-node --test agree --test datapath --test quotas --test services "${early[@]}"
}

make_initramfs() {
    local version=$1 root=$work/$1/root module file program test
    rm -rf "$root"
    mkdir -p "$root"/{bin,modules,tests}
    for module in "${modules[@]}"; do
        modprobe -d "$work/$version/deb" -S "$(release_of "$version")" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
        case $file in
            *.xz) xz -dc "$file" > "$root/modules/$(basename "$file" .xz)" ;;
            *) cp "$file" "$root/modules/" ;;
        esac
        basename "$file" .xz >> "$root/modules/order"
    done
    for test in "${tests[@]}"; do
        file=$work/tests-plain/$test
        [ "$version" != 5.10 ] || [ ! -e "$work/tests-early/$test" ] || file=$work/tests-early/$test
        cp "$file" "$root/tests/"
    done
    # Where the tests look for the clusters that disagreed once.
    mkdir -p "$root$PWD/policy/tests" "$root$PWD/node-daemon"
    cp -r policy/tests/cases "$root$PWD/policy/tests/"
    for program in "${programs[@]}"; do
        cp -L "$(command -v "$program")" "$root/bin/"
    done
    # The loader and the libraries, where the binaries look for them.
    { ldd "$root"/bin/* "$root"/tests/* 2>/dev/null || true; } | grep -o '/[^ ]*\.so[^ ]*' | sort -u | while read -r file; do
        install -D "$file" "$root$file"
    done
    ln -s busybox "$root/bin/sh"
    install -m 755 hack/kernels/init.sh "$root/init"
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) > "$work/$version/initramfs"
}

boot() {
    local version=$1
    : > "$work/$version/results"
    timeout --foreground "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,la57=off -smp 2 -m 4096 \
        -display none -net none -no-reboot \
        -kernel "$work/$version/deb/boot/vmlinuz-$(release_of "$version")" -initrd "$work/$version/initramfs" \
        -append 'console=ttyS0 quiet panic=-1 mitigations=off' \
        -serial "file:$work/$version.log" -serial "file:$work/$version/results" < /dev/null || true
}

# A line of the table; fails where a test failed, or did not run to its end.
report() {
    local version=$1 seconds=$2 test line passed failed=0
    printf '%-24s' "$(release_of "$version")"
    for test in "${tests[@]}"; do
        line=$(tr -d '\r' < "$work/$version/results" | grep "^$test " || true)
        passed=$(awk -v test="$test" '$1 == "---" { of = $2 } /^test result: / && of == test { sum += $4 } END { print sum }' "$work/$version.log")
        case $line in
            "$test 0 "*) printf '%-18s' "ok ${passed:-0} (${line##* } s)" ;;
            '') printf '%-18s' 'did not end'; failed=1 ;;
            *) printf '%-18s' "FAILED"; failed=1 ;;
        esac
    done
    printf '%s s\n' "$seconds"
    if grep -a '^module-' "$work/$version/results" || [ "$failed" -ne 0 ]; then
        echo "  see target/kernels/$version.log"
        return 1
    fi
}

install_tools
update_lists
echo 'building the tests'
build_all_tests
for version in "$@"; do
    fetch_kernel "$version"
    make_initramfs "$version"
done
status=0
printf '%-24s%s' kernel "$(printf '%-18s' "${tests[@]}")"
printf 'in all\n'
for version in "$@"; do
    start=$SECONDS
    boot "$version"
    report "$version" $((SECONDS - start)) || status=1
done
exit "$status"
