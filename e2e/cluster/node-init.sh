#!/bin/bash
# The first process of the node, run by up.sh in fresh namespaces: makes the mounts private to
# the node, reports, and becomes `pause`, which holds the namespaces until it is killed.
set -euo pipefail
. "$(dirname "$0")/lib/env.sh"
. "$(dirname "$0")/lib/cgroup.sh"

hostname "$NODE_NAME"
ip link set lo up

# What is mounted here stays here, and reaches the pods' mount namespaces.
mount --make-rshared /
mount -t proc proc /proc
mount -t sysfs sysfs /sys

# What the node's programs write outside of $STATE_DIR goes to memory, not to the machine; some
# paths below /var/lib cannot be configured. The cache stays what it is, wherever it may be.
for dir in /run /var/log; do
  mount -t tmpfs -o mode=755 node "$dir"
done
mkdir -p /run/cache
mount --bind "$CACHE_DIR" /run/cache
for dir in var/lib etc opt; do
  mkdir -p "/run/over/$dir"/{upper,work}
  mount -t overlay -o "lowerdir=/$dir,upperdir=/run/over/$dir/upper,workdir=/run/over/$dir/work" node "/$dir"
done
mount --bind /run/cache "$CACHE_DIR"

# Network plugins and their configuration are where they are on any node.
mkdir -p /etc/cni/net.d /opt/cni/bin "$STATE_DIR"/cni/{net.d,bin}
ln -sf "$(< "$STATE_DIR/node-bin")"/cni/* "$STATE_DIR/cni/bin/"
mount --bind "$STATE_DIR/cni/net.d" /etc/cni/net.d
mount --bind "$STATE_DIR/cni/bin" /opt/cni/bin

# The new /sys has no cgroups yet: what they are is on record.
if grep -q '^v2 ' "$STATE_DIR/cgroups"; then
  mount -t cgroup2 cgroup2 $CGROUP_FS
else
  mount -t tmpfs -o mode=755 cgroup $CGROUP_FS
  while read -r controllers _; do
    dir=$CGROUP_FS/${controllers#name=}
    mkdir "$dir"
    case $controllers in name=*) options=none,$controllers ;; *) options=$controllers ;; esac
    mount -t cgroup -o "$options" cgroup "$dir"
    # Hierarchies with several controllers go by each one's name, too.
    for controller in ${controllers//,/ }; do
      [ -e "$CGROUP_FS/${controller#name=}" ] || ln -s "$controllers" "$CGROUP_FS/$controller"
    done
  done < "$STATE_DIR/cgroups"
fi

# The kubelet insists on these settings. They are the kernel's, not the node's: show it files
# that say what it wants, and leave the machine's own as they are.
mkdir /run/sysctl
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1; do
  file=/run/sysctl/${setting//[\/=]/_}
  echo "${setting#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done

touch "$STATE_DIR/node-ready"
exec "$(< "$STATE_DIR/node-bin")/pause"
