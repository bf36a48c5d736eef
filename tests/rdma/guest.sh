# The first process of the machine once the host's files are mounted. It mounts a writable overlay over them, kept in
# the machine's memory, makes an RDMA device (soft-RoCE) over a dummy network, and runs a program. The machine ends
# with that program. Arguments: the program and its arguments.

# Ends the machine with this value; `machine.rs` has the exit status that qemu makes of it.
end() {
    echo "machine: ends $(cut -d ' ' -f 1 /proc/uptime) s after its start"
    printf "\\x$1" | dd of=/dev/port bs=1 seek=244 count=1 2>/dev/null
}

set -e
trap 'end 01' EXIT

mount -t tmpfs tmpfs /written
mkdir /written/files /written/work
# The files of the guest's packages lie above the host's.
mount -t overlay -o lowerdir=/guest:/host,upperdir=/written/files,workdir=/written/work overlay /whole
mount -t proc proc /whole/proc
mount -t sysfs sysfs /whole/sys
mount -t devtmpfs devtmpfs /whole/dev
mkdir -p /whole/dev/shm /whole/dev/pts
mount -t tmpfs tmpfs /whole/dev/shm
mount -t tmpfs tmpfs /whole/run
ulimit -l unlimited

in_whole() { chroot /whole /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
in_whole ip link set lo up
# A device over lo accepts no connections.
in_whole ip link add cable type dummy
in_whole ip address add 10.77.0.1/24 dev cable
in_whole ip link set cable up
in_whole rdma link add rxe0 type rxe netdev cable
echo "machine: ready $(cut -d ' ' -f 1 /proc/uptime) s after its start"

if in_whole TOWLINE_RDMA=here "$@"; then
    trap - EXIT
    end 10
fi
