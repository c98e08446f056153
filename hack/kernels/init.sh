#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the virtual machine: loads modules, runs the tests of /tests one binary after the other, writes
# a line `NAME STATUS SECONDS` for each to the second serial port, and turns the machine off.
export PATH=/bin:/usr/bin:/usr/sbin:/sbin RUST_LIB_BACKTRACE=0 TMPDIR=/tmp
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox mount -t proc proc /proc
# What the initramfs has of its own (ip, nft, tc) stays.
for applet in $(/bin/busybox --list); do
    [ -e "/bin/$applet" ] || /bin/busybox ln -s busybox "/bin/$applet"
done
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
results=/dev/ttyS1
# Before 6.6 there are no links that could take over from filters.
case $(uname -r) in
    5.* | 6.[0-5].*) old='--skip handover::' ;;
    *) old='' ;;
esac
while read -r module; do
    insmod "/modules/$module" || echo "module-$module 1 0" > "$results"
done < /modules/order
ip link set lo up
# Each life of the daemon that a test begins keeps its maps and programs open until the process ends.
ulimit -n 65536
# A machine by emulation takes some twenty times as long for each.
export WARDLINE_FUZZ_CASES=5000 WARDLINE_FLOWS=8000
for test in /tests/*; do
    name=${test##*/}
    echo "--- $name on $(uname -r)"
    read -r start _ < /proc/uptime
    # Not the one of sums that a device took, which these kernels' test runs cannot give a packet. Nor what does not end
    # by emulation: policies and entries rewritten all the time, floods, and daemons whose patience is in seconds.
    status=0
    run() {
        "$test" --test-threads=2 --skip the_sum_that_a_device_took --skip never_show_a_packet_a_mix \
            --skip races::no_packet --skip races::hardly_a_packet \
            --skip hostile:: --skip control:: --skip takeover:: $old "$@" || status=$?
    }
    # What a test loads stays until its process ends. Real traffic loads most: a process for each of its modules.
    if [ "$name" = traffic ]; then
        for module in $("$test" --list 2> /dev/null | sed -n 's/::.*: test$//p' | sort -u); do
            run "$module::"
        done
    else
        run
    fi
    read -r end _ < /proc/uptime
    echo "$name $status $((${end%.*} - ${start%.*}))" > "$results"
done
uname -r > "$results"
poweroff -f
