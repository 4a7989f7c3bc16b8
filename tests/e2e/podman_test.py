#!/usr/bin/env python3
"""Podman and buildah with lamina-fuse as their mount_program do what they do with fuse-overlayfs, byte for byte.

One script of operations runs with each of the two; what it prints, exit codes included, must be the same, and no mount
and no process may be left.
"""
import difflib
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import support
from changes_test import resource_limit_lines
from support import IS_ROOT, Layout, entry, layer, main, needs_fuse, needs_program, needs_root, run

TOOLS = ("sh ls cat id sleep touch rm mv cp ln mkdir rmdir chmod chown find sort stat sha256sum dd head grep tar true "
         "false test sync readlink printf sed").split()

SCRIPT = r"""
cd "$WORK"
podman() { command podman $RUNTIME "$@" </dev/null; }
run() { podman run --network=none $CGROUPS "$@"; }
in_container() { run --rm "$1" sh -c "$2"; }
into() { target=$1; shift; "$@" >"$target"; }
step() { echo "== $1"; shift; "$@" 2>"$WORK/errors"; echo "status $?"; }
show() { (cd "$1" && find . -mindepth 1 ! -path './proc*' ! -path './sys*' ! -path './dev*' ! -path './run*' \
  ! -path './etc/host*' ! -path './etc/resolv.conf' \
  \( -type d -printf '%P %y %m %U:%G\n' -o -printf '%P %y %m %U:%G %n %s %l %T@\n' \) | sort
  find . -type f ! -path './proc/*' ! -path './etc/host*' -exec sha256sum {} + | sort -k2); }
contents() { mkdir "$WORK/unpacked" && tar -C "$WORK/unpacked" -xf "$1" && show "$WORK/unpacked"
  rm -rf "$WORK/unpacked"; }
layer_names() { python3 -c 'import json,sys; print(*json.load(open(sys.argv[1]))[0]["Layers"])' "$1/manifest.json"; }
layers() { mkdir "$WORK/saved" && tar -C "$WORK/saved" -xf "$1"
  for name in $(layer_names "$WORK/saved"); do
    echo "layer"
    tar -tvf "$WORK/saved/$name" --full-time --numeric-owner | sed '/^d/s/ 20[^ ]* [0-9:.]* / /' | sort -k6
  done; rm -rf "$WORK/saved"; }

podman pull -q oci:$WORK/layout:tools >pulled || echo "no image is pulled"
step tag podman tag "$(cat pulled)" tools
step run run --rm tools sh -c 'cat /etc/motd; ls -l /gone /etc/opq; grep -c fuse /proc/self/mountinfo; exit 3'
# Names of containers are no hexadecimal digits: to podman diff those may begin the ID of an image.
step change run --name worker tools sh -c '
  echo new > /etc/new; rm /etc/motd; rm -r /srv/tree/a; mv /srv/tree/b /srv/tree/moved; ln /srv/one /srv/two
  echo more >> /srv/one; chmod 2710 /srv/tree; mkdir -p /opt/deep/er; ln -s nowhere /opt/link; mv /srv/big /opt/big
  chown 7:8 /etc/group; chmod 4755 /bin/busybox; stat -c %a /bin/busybox; rm -r /srv/replaced
  dd if=/dev/zero of=/opt/sparse bs=1 count=1 seek=1000000 2>/dev/null
  touch -d "2001-02-03 04:05:06" /etc/new; find /srv /opt | sort; cat /srv/one /srv/two'
podman diff worker > listing; step diff sort listing
step again podman start -a worker
step commit into made.id podman commit -q worker made
step run-made in_container made 'find /srv /opt /etc | sort; cat /srv/one; ls /srv
  stat -c "%n %a %u:%g %h %s" /srv/one /opt/big /etc/group'
step export podman export worker -o exported.tar; contents exported.tar
step import into /dev/null podman import -q exported.tar imported
step run-imported run --rm imported /bin/sh -c 'cat /srv/one; ls /opt'
step save podman save -q -o made.tar made; layers made.tar
step rmi into /dev/null podman rmi -f imported made
step load podman load -q -i made.tar
step run-loaded in_container made 'cat /srv/one; stat -c "%n %a %u:%g %h" /srv/* /opt/*'
step read-only run --rm --read-only tools sh -c 'touch /x; echo $?; cat /etc/motd'
mkdir over && echo low > over/file && echo low > over/gone && mkdir over/dir
step overlay-volume run --rm -v "$WORK/over:/x:O" tools sh -c '
  cat /x/file; echo up > /x/file; rm /x/gone; rmdir /x/dir; echo n > /x/new; ls /x; cat /x/*'
step untouched sh -c 'ls over; cat over/*'
step image-volume run --rm --mount type=image,source=tools,destination=/img tools sh -c '
  cat /img/etc/motd; touch /img/x; echo $?'
step start into /dev/null run -d --name idle tools sleep 1000
step exec podman exec idle sh -c 'echo from-exec > /root/file; rm -r /srv/tree; ls / /srv; cat /root/file'
step cp-in podman cp "$WORK/over/file" idle:/root/copied
step cp-out podman cp idle:/etc/motd "$WORK/motd-out"; cat motd-out
step exec-again podman exec idle cat /root/copied /root/file
podman diff idle > listing; step live-diff sort listing
step stop into /dev/null podman rm -f -t 0 idle
cat > Containerfile <<'END'
FROM tools AS first
RUN mkdir /built && echo one > /built/one && rm /etc/motd && ln /built/one /built/hard
RUN chmod 700 /built && mv /srv/tree /built/tree && touch -d "2001-02-03 04:05:06" /built/one
FROM tools
COPY --from=first /built /copied
COPY over/file /file
RUN echo last >> /copied/one && rm -r /srv/replaced && cat /copied/one
WORKDIR /copied
CMD ["sh", "-c", "find . | sort; cat one hard"]
END
step build into /dev/null podman build -q $BUILD_OPTIONS -t built .
step run-built run --rm built
step many in_container tools 'mkdir /many; i=0; while [ $i -lt 500 ]; do echo $i > /many/$i; i=$((i+1)); done
  ls /many | wc -l; rm -r /many; ls /'
if [ "$(id -u)" = 0 ]; then
  step image-mount podman image mount tools > mounted; cat "$(head -1 mounted)/etc/motd"
  step image-umount into /dev/null podman image umount -f tools
  step container-mount podman mount worker > mounted; m=$(sed -n 2p mounted)
  cat $m/srv/one; ls $m/opt; echo host > $m/opt/host; cat $m/opt/host
  step container-umount into /dev/null podman umount worker
else
  step image-mount podman unshare sh -c '
    cat "$(podman image mount tools)/etc/motd"; podman image umount -f tools >/dev/null'
  step container-mount podman unshare sh -c '
    m=$(podman mount worker); cat $m/srv/one; ls $m/opt; echo host > $m/opt/host; cat $m/opt/host
    podman umount worker >/dev/null'
  step ids run --rm --user 1:2 tools sh -c '
    id -u; id -g; touch /tmp/mine; stat -c %u:%g /tmp/mine /etc/motd; touch /etc/motd; echo $?'
fi
if [ "$(podman version -f '{{.Client.Version}}' | cut -d. -f1)" -ge 5 ]; then  # older ones map owners twice
  first=$([ "$(id -u)" = 0 ] && echo 100000 || echo 1)
  step uidmap run --name mapped --uidmap 0:$first:5000 --gidmap 0:$first:5000 tools sh -c '
    head -1 /proc/self/uid_map | tr -s " "; touch /new; chown 5:6 /new; mkdir /dir; mv /srv/tree /moved; cat /etc/motd
    rm /srv/one; chown 7:8 /etc/group
    stat -c "%n %u:%g %a" /new /dir /moved /moved/a /etc/group /etc/motd /bin/busybox'
  podman container cleanup mapped >/dev/null 2>&1  # owners differ as long as its own mount is looked at
  podman diff mapped > listing; step mapped-diff sort listing
  step mapped-commit into /dev/null podman commit -q mapped from-mapped
  step run-mapped in_container from-mapped '
    ls /srv; stat -c "%n %u:%g %a" /new /dir /moved /moved/a /etc/group /etc/motd'
fi
if command -v buildah >/dev/null; then
  step from into /dev/null buildah from -q --name b tools
  step buildah-run buildah run --isolation=chroot b -- sh -c 'echo by > /root/b; cat /root/b; rm /etc/motd; ls /root'
  step buildah-copy into /dev/null buildah copy -q b over/file /root/copied
  step buildah-commit into /dev/null buildah commit -q b from-buildah
  step buildah-rm into /dev/null buildah rm b
  step run-buildahs in_container from-buildah 'cat /root/b /root/copied; ls /root'
fi
step volumes run --rm -v named:/v tools sh -c 'echo kept > /v/file; cat /v/file'
step container-prune into /dev/null podman container prune -f
step image-prune into /dev/null podman image prune -f
podman image list --format '{{.Repository}}' > listing; step images sort listing
step rm into /dev/null podman rm -f -a
step prune into /dev/null podman system prune -a -f --volumes
step nothing podman images -q
"""


def make_layout(folder):
    busybox = pathlib.Path(shutil.which("busybox")).read_bytes()
    folders = "bin etc etc/opq proc sys dev tmp root srv opt srv/tree srv/tree/a srv/tree/b srv/replaced".split()
    base = layer(*[entry(name, "dir") for name in folders], entry("bin/busybox", data=busybox, mode=0o755),
                 *[entry(f"bin/{name}", "symlink", target="busybox", mode=0o777) for name in TOOLS],
                 entry("etc/passwd", data="root:x:0:0::/root:/bin/sh\n"), entry("etc/group", data="root:x:0:\n"),
                 entry("etc/motd", data="lower\n"), entry("gone", data="gone"), entry("etc/opq/hidden", data="x"),
                 entry("srv/tree/a/file", data="a\n"), entry("srv/tree/b/file", data="b\n"),
                 entry("srv/one", data="1\n"), entry("srv/replaced/old", data="old\n"),
                 entry("srv/big", data=bytes(range(256)) * 8000))
    upper = layer(entry("etc", "dir"), entry("etc/motd", data="hello\n"), entry(".wh.gone"), entry("etc/opq", "dir"),
                  entry("etc/opq/.wh..wh..opq"), entry("etc/opq/shown", data="y"))
    Layout(folder).add("tools", [base, upper])


def without_times(text):
    """Times of this run, and digests that follow from them."""
    text = re.sub(r"20(2[4-9]|[3-9][0-9])-[0-9]{2}-[0-9]{2} [0-9:.]+", "NOW", text)
    return re.sub(r"\b(17[5-9]|1[89][0-9])[0-9]{7}\.[0-9]+", "NOW", text)


class Storage:
    """Podman's storage in a folder of its own, with one mount program."""

    def __init__(self, program, user=None):
        self.folder = pathlib.Path(f"/var/tmp/lamina-podman-{secrets.token_hex(4)}")  # no "_": it is in images' names
        self.folder.mkdir(mode=0o700)
        self.program, self.user = program, user
        (self.folder / "work").mkdir()
        (self.folder / "home").mkdir()
        make_layout(self.folder / "work/layout")
        (self.folder / "containers.conf").write_text(
            f'[containers]\n{resource_limit_lines()}\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n')
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/root"\nrunroot = "{self.folder}/run"\n'
            f'rootless_storage_path = "{self.folder}/root"\n'
            f'[storage.options.overlay]\nmount_program = "{program}"\n')
        (self.folder / "home/.config/containers").mkdir(parents=True)
        policy = '{"default":[{"type":"insecureAcceptAnything"}]}'
        (self.folder / "home/.config/containers/policy.json").write_text(policy)
        (self.folder / "script").write_text(SCRIPT)
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C",
                            "HOME": str(self.folder / "home"), "WORK": str(self.folder / "work"),
                            "XDG_RUNTIME_DIR": str(self.folder / "xdg"), "TMPDIR": str(self.folder / "tmp"),
                            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
                            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
                            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf")}
        (self.folder / "xdg").mkdir(mode=0o700)
        (self.folder / "tmp").mkdir()

    def enter(self, script):
        """The words that run a shell script, as the user where there is one."""
        if not self.user:
            return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script]
        (self.folder / "as-user").write_text(script)
        run("chown", "-R", f"{self.user}:{self.user}", self.folder)
        return support.as_user(self.folder, self.folder / "as-user")

    def run_script(self, runtime, cgroups, build_options):
        environment = {**self.environment, "RUNTIME": runtime, "CGROUPS": cgroups, "BUILD_OPTIONS": build_options}
        script = f'sh "{self.folder}/script"; podman ps -aq | grep . && echo "containers left"; true'
        result = subprocess.run(self.enter(script), env=environment, capture_output=True, text=True, timeout=600)
        return result.stdout + result.stderr

    def way_to_run(self):
        """Runtime and options with which a container runs here; None: with none."""
        return ("--runtime=runc", "", "--runtime=runc") if shutil.which("runc") else None

    def left_mounts(self):
        mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
        return [line for line in mounts if str(self.folder) in line and "fuse" in line]

    def left_processes(self):
        found = []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes()
                is_zombie = ") Z" in (process / "stat").read_text()
            except OSError:
                continue
            if str(self.folder).encode() in words and self.program.name.encode() in words and not is_zombie:
                found.append(words.replace(b"\0", b" ").decode())
        return found

    def end_pause_process(self):
        """It would go on holding the user's namespaces, and with them every mount that was there at its start."""
        for file in (self.folder / "xdg").glob("**/pause.pid"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass

    def close(self):
        self.end_pause_process()
        for _ in range(5):
            for line in reversed(self.left_mounts()):
                run("umount", "-l", line.split()[1], check=False)
        for name in ("root/overlay", "root"):
            while run("umount", "-l", self.folder / name, check=False).returncode == 0:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)


@needs_fuse
@needs_root
@needs_program("podman")
@needs_program("fuse-overlayfs")
@needs_program("busybox")
@needs_program("runc")
class PodmanTest(unittest.TestCase):
    maxDiff = None

    def outcome(self, program, user=None):
        storage = Storage(program, user)
        self.addCleanup(storage.close)
        text = without_times(storage.run_script(*storage.way_to_run()).replace(str(storage.folder), "FOLDER"))
        deadline = time.monotonic() + 10
        while (storage.left_processes() or storage.left_mounts()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return text, storage

    def compared(self, user=None):
        ours = support.BUILD / "fuse/lamina-fuse"
        if user:  # The build folder may be nobody else's to look into.
            copy = pathlib.Path(tempfile.mkdtemp(prefix="lamina-bin-", dir="/var/tmp"))
            self.addCleanup(shutil.rmtree, copy)
            copy.chmod(0o755)
            ours = pathlib.Path(shutil.copy(ours, copy / "lamina-fuse"))
        theirs, _ = self.outcome(pathlib.Path(shutil.which("fuse-overlayfs")), user)
        if "== run\nhello\n" not in theirs:
            self.skipTest(f"podman runs no container here with fuse-overlayfs: {theirs[-2000:]}")
        text, storage = self.outcome(ours, user)
        self.assertEqual([], storage.left_mounts())
        self.assertEqual([], storage.left_processes())
        difference = "\n".join(difflib.unified_diff(theirs.splitlines(), text.splitlines(), "fuse-overlayfs", "lamina",
                                                    lineterm=""))
        self.assertEqual("", difference)

    def test_as_root_all_is_as_with_fuse_overlayfs(self):
        self.compared()

    @needs_program("newuidmap")
    def test_as_a_user_all_is_as_with_fuse_overlayfs(self):
        self.compared(support.USER)


if __name__ == "__main__":
    main()
