#!/bin/sh
# Becomes the systemd of another file tree, a Debian that mmdebstrap made: own mounts, processes, cgroups. The tree stays
# as it is; what is written goes away with it. Run by tests/system/systemd.py:
#
#   unshare --mount --pid --fork --mount-proc --cgroup --ipc --uts systemd_in_tree.sh DIRECTORY TREE
set -eu
directory=$1 tree=$2
mount --make-rprivate /
mkdir -p "$directory/scratch"
mount -t tmpfs tmpfs "$directory/scratch"
cd "$directory/scratch"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=$tree,upperdir=upper,workdir=work" root
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs tmpfs sys
mkdir -p sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# What every service wants is there, and empty.
for target in sysinit basic network-online multi-user shutdown umount final; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" > "etc/systemd/system/$target.target"
done
mkdir old
pivot_root . old
umount -l old
rmdir old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=no
