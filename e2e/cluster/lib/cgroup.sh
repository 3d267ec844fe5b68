# shellcheck shell=bash
# The node's sub-tree of each cgroup hierarchy, for cgroup v1 and v2. Sourced, never run.
#
# In each hierarchy the node owns DIR = .../tulle-NAME, which its cgroup namespace shows it as the
# root. What runs in the node outside of pods is in DIR/system, because v2 lets a group have
# either processes or children with controllers; the kubelet makes DIR/kubepods beside it.
# $STATE_DIR/cgroups lists them, one "CONTROLLERS DIR" a line; v2's controllers are called "v2".

CGROUP_FS=/sys/fs/cgroup
CGROUP_V2_CONTROLLERS='cpuset cpu io memory hugetlb pids'

cgroup_is_v2() { [ "$(stat -fc %T $CGROUP_FS)" = cgroup2fs ]; }

# cgroup_create makes the sub-trees and records them.
cgroup_create() {
  : > "$STATE_DIR/cgroups"
  if cgroup_is_v2; then
    _cgroup_offer_controllers
    mkdir -p "$CGROUP_FS/$NODE_TAG/system"
    echo "v2 $CGROUP_FS/$NODE_TAG" > "$STATE_DIR/cgroups"
    return
  fi
  local id controllers path parent
  while IFS=: read -r id controllers path; do
    # Hierarchy 0 is the v2 one, which has no controllers on a v1 machine.
    [ "$id" = 0 ] && continue
    parent=$CGROUP_FS/${controllers#name=}
    [ -d "$parent" ] || continue
    # Below the group this script is in, if the path means something here (in a container it
    # may be the machine's).
    [ -d "$parent$path" ] && parent=$parent${path%/}
    mkdir -p "$parent/$NODE_TAG"
    if [[ ,$controllers, == *,cpuset,* ]]; then
      # A v1 cpuset starts empty, and nothing can run in it.
      cat "$parent/cpuset.cpus" > "$parent/$NODE_TAG/cpuset.cpus"
      cat "$parent/cpuset.mems" > "$parent/$NODE_TAG/cpuset.mems"
      echo 1 > "$parent/$NODE_TAG/cgroup.clone_children"
    fi
    mkdir -p "$parent/$NODE_TAG/system"
    echo "$controllers $parent/$NODE_TAG" >> "$STATE_DIR/cgroups"
  done < /proc/self/cgroup
}

# cgroup_join PID [LEAF] moves a process into the node's sub-trees.
cgroup_join() {
  local controllers dir
  while read -r controllers dir; do
    echo "$1" > "$dir/${2:-}/cgroup.procs"
  done < "$STATE_DIR/cgroups"
}

# cgroup_delegate lets the node's root group have children with controllers (v2; v1 needs nothing).
# No process may be in the root group any more.
cgroup_delegate() {
  cgroup_is_v2 || return 0
  _cgroup_enable "$CGROUP_FS/$NODE_TAG"
}

# cgroup_remove removes the sub-trees, once nothing runs in them, and undoes what
# _cgroup_offer_controllers did.
cgroup_remove() {
  local controllers dir controller
  [ -e "$STATE_DIR/cgroups" ] || return 0
  while read -r controllers dir; do
    # A group stays busy for a moment after its last process ended.
    wait_until 10 "removal of $dir" /dev/null _cgroup_remove_tree "$dir"
  done < "$STATE_DIR/cgroups"
  [ -e "$STATE_DIR/offered-before" ] || return 0
  for controller in $(< $CGROUP_FS/cgroup.subtree_control); do
    # Refused where another group has come to need it meanwhile.
    grep -qw "$controller" "$STATE_DIR/offered-before" ||
      echo "-$controller" 2> /dev/null > $CGROUP_FS/cgroup.subtree_control || true
  done
  if [ -d "$CGROUP_FS/$NODE_TAG-host" ]; then
    _cgroup_move "$CGROUP_FS/$NODE_TAG-host" $CGROUP_FS
    rmdir "$CGROUP_FS/$NODE_TAG-host"
  fi
}

_cgroup_remove_tree() {
  [ -d "$1" ] || return 0
  find "$1" -depth -type d -exec rmdir {} + 2> /dev/null
  ! [ -d "$1" ]
}

# _cgroup_offer_controllers makes the controllers available below the top group. In a container
# the top group holds the container's processes, and v2 forbids that; they step aside into a
# group of their own until cgroup_remove brings them back.
_cgroup_offer_controllers() {
  cp $CGROUP_FS/cgroup.subtree_control "$STATE_DIR/offered-before"
  _cgroup_enable $CGROUP_FS 2> /dev/null && return
  say "moving this container's processes into the cgroup $NODE_TAG-host meanwhile"
  mkdir -p "$CGROUP_FS/$NODE_TAG-host"
  _cgroup_move $CGROUP_FS "$CGROUP_FS/$NODE_TAG-host"
  _cgroup_enable $CGROUP_FS || die "cannot delegate the cgroup controllers $CGROUP_V2_CONTROLLERS"
}

_cgroup_enable() {
  local controller
  for controller in $CGROUP_V2_CONTROLLERS; do
    # Some kernels lack one; the kubelet says which it cannot do without.
    grep -qw "$controller" "$1/cgroup.controllers" || continue
    echo "+$controller" > "$1/cgroup.subtree_control" || return 1
  done
}

_cgroup_move() {
  local pid
  for pid in $(< "$1/cgroup.procs"); do
    # A process may have ended meanwhile.
    echo "$pid" > "$2/cgroup.procs" 2> /dev/null || true
  done
}
