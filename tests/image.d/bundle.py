"""Writes the configuration of one container: the image's own, made as strict as a cluster makes it.

Usage: bundle.py IMAGE_BUNDLE FOLDER [--host-network] [--env NAME=VALUE]... [--mount PATH:TARGET[:rw]]... -- ARGUMENT...
"""

import argparse
import json
import pathlib
import sys

end = sys.argv.index("--")
parser = argparse.ArgumentParser()
parser.add_argument("image", type=pathlib.Path)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--host-network", action="store_true")
parser.add_argument("--env", action="append", default=[])
parser.add_argument("--mount", action="append", default=[])
given = parser.parse_args(sys.argv[1:end])

bundle = json.loads((given.image / "config.json").read_text())
process = bundle["process"]
process["terminal"] = False
process["noNewPrivileges"] = True
process["capabilities"] = {kind: [] for kind in process["capabilities"]}
process["args"] = process["args"][:1] + sys.argv[end + 1 :]
process["env"] += given.env
bundle["root"] = {"path": str((given.image / "rootfs").resolve()), "readonly": True}
# The control group is made outside, because crun cannot make one on a machine with version 1 and 2 together.
bundle["mounts"] = [mount for mount in bundle["mounts"] if mount["type"] not in ("cgroup", "sysfs")]
for mount in given.mount:
    source, target, *writable = mount.split(":")
    options = ["bind", "nosuid", "nodev", "noexec"] + ([] if writable else ["ro"])
    bundle["mounts"].append({"destination": target, "type": "bind", "source": source, "options": options})
if given.host_network:
    spaces = bundle["linux"]["namespaces"]
    bundle["linux"]["namespaces"] = [space for space in spaces if space["type"] != "network"]
given.folder.mkdir(parents=True, exist_ok=True)
(given.folder / "config.json").write_text(json.dumps(bundle, indent=1))
