#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Other people's clients against our NBD server: nbdinfo, nbdcopy, qemu-img,
# qemu-io and fio with verification; over Unix and TCP; raw, qcow2 and QED.
#
#   clients.sh SLUICED
set -u
sluiced=$1
work=$(mktemp -d /dev/shm/sluice-clients-XXXXXX)
pid=
cleanup() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
n=0
failed=0
check() { # name, command...
    local name=$1
    shift
    n=$((n + 1))
    if "$@" > "$work/out" 2>&1 < /dev/null; then
        echo "ok $n - $name"
    else
        failed=1
        echo "not ok $n - $name"
        sed 's/^/# /' "$work/out" | tail -n 20
    fi
}

start() { # format
    "$sluiced" --blockdev "driver=$1,node-name=d,discard=unmap,file.driver=file,file.filename=$work/disk" \
        --nbd-server "$2" --export nbd,id=e,node-name=d,name=d,writable=on \
        --chardev "socket,path=$work/qmp,id=c,server=on,wait=off" \
        --monitor chardev=c --daemonize --pidfile "$work/pid" || return 1
    pid=$(cat "$work/pid")
}

stop() {
    kill "$pid"
    # The pid file goes when everything is flushed and closed.
    tail --pid="$pid" -f /dev/null
    pid=
}

fio_verify() {
    # No block twice: fio cannot verify what it writes twice at once.
    fio --name=v --ioengine=nbd --uri="$1" --rw=randwrite --bs=4k --size=24m \
        --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 \
        --randseed=7
}

same() {
    qemu-img compare -f "$1" -F raw "$work/disk" "$work/data"
}

head -c 50000000 /dev/urandom > "$work/data"
truncate -s 67108864 "$work/data"
port=$((20000 + $$ % 20000))
for format in raw qcow2 qed; do
    for kind in unix inet; do
        if [ $kind = unix ]; then
            address="addr.type=unix,addr.path=$work/nbd"
            uri="nbd+unix:///d?socket=$work/nbd"
            list="nbd+unix://?socket=$work/nbd"
        else
            address="addr.type=inet,addr.host=127.0.0.1,addr.port=$port"
            uri="nbd://127.0.0.1:$port/d"
            list="nbd://127.0.0.1:$port"
        fi
        t="$format over $kind"
        rm -f "$work/disk"
        qemu-img create -q -f $format "$work/disk" 64M
        check "$t: starts" start $format "$address"
        check "$t: nbdinfo" nbdinfo --json "$uri"
        check "$t: nbdinfo --list" nbdinfo --list "$list"
        check "$t: nbdcopy in" nbdcopy "$work/data" "$uri"
        check "$t: nbdcopy out" nbdcopy "$uri" "$work/back"
        check "$t: it came back" cmp "$work/data" "$work/back"
        check "$t: nbdinfo --map" nbdinfo --map "$uri"
        check "$t: qemu-img convert out" qemu-img convert -f raw -O raw "$uri" "$work/back2"
        check "$t: it is the same" cmp "$work/data" "$work/back2"
        check "$t: stops" stop
        check "$t: the image holds it" same $format
        check "$t: starts again" start $format "$address"
        check "$t: fio verifies" fio_verify "$uri"
        check "$t: qemu-io zeroes, discards, reads" qemu-io -f raw \
            -c 'write -P 5 1M 3M' -c 'write -z -u 1M 1M' -c 'discard 2M 64k' \
            -c 'read -P 0 1M 1M' -c 'read -P 5 3M 1M' -c flush "$uri"
        check "$t: stops again" stop
        if [ $format != raw ]; then
            check "$t: qemu-img check" qemu-img check -f $format "$work/disk"
        fi
    done
done
echo "1..$n"
exit $failed
