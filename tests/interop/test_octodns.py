"""octodns reads the zone by AXFR, plans a change and makes it by signed updates."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.foreign import LabProcess

ZONE = "members.example."
SECONDS = 60


class Octodns:
    """The zone as YAML in `zones`, the lab's server as the provider."""

    def __init__(self, lab: LabProcess, directory: Path) -> None:
        self.zones = directory / "zones"
        self.zones.mkdir()
        key = lab.facts["keys"]["admin"]
        self.file = directory / "octodns.yaml"
        config: dict[str, Any] = {
            "providers": {
                "config": {"class": "octodns.provider.yaml.YamlProvider", "directory": str(self.zones)},
                "homing": {
                    "class": "octodns_bind.Rfc2136Provider",
                    "host": lab.address,
                    "port": lab.port,
                    "key_name": key["name"],
                    "key_secret": "env/KEY_SECRET",
                    "key_algorithm": key["algorithm"],
                },
            },
            "zones": {ZONE: {"sources": ["config"], "targets": ["homing"]}},
        }
        self.file.write_text(yaml.safe_dump(config))
        self.secret = key["secret"]

    def run(self, command: str, *arguments: str) -> str:
        """A command of octodns to its end; all it printed."""
        done = subprocess.run(
            [Path(sys.executable).with_name(f"octodns-{command}"), "--config-file", self.file, *arguments],
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "KEY_SECRET": self.secret},
        )
        text = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, text
        return text

    def edit(self) -> dict[str, Any]:
        return dict(yaml.safe_load((self.zones / f"{ZONE}yaml").read_text()))

    def write(self, records: dict[str, Any]) -> None:
        (self.zones / f"{ZONE}yaml").write_text(yaml.safe_dump(records))


def answers(lab: LabProcess, owner: str, rtype: str) -> list[str]:
    return sorted(lab.dig("+short", f"{owner}.{ZONE}", rtype).split())


@pytest.mark.rfc("2136", "2.5")
@pytest.mark.rfc("5936", "2.2")
def test_a_zone_is_dumped_changed_and_synchronised(lab: LabProcess, tmp_path: Path) -> None:
    lab.nsupdate(
        "admin",
        f"update add old.{ZONE} 300 A 192.0.2.1",
        f"update add many.{ZONE} 300 A 192.0.2.1",
        f"update add many.{ZONE} 300 A 192.0.2.2",
    )
    octodns = Octodns(lab, tmp_path)
    octodns.run("dump", "--output-dir", str(octodns.zones), "--lenient", ZONE, "homing")
    records = octodns.edit()
    assert records["many"]["values"] == ["192.0.2.1", "192.0.2.2"]
    assert records["old"]["value"] == "192.0.2.1" and "_dns-update._udp" in records
    assert "No changes were planned" in octodns.run("sync")
    del records["old"]
    records["many"]["values"] = ["192.0.2.2", "192.0.2.3"]
    records["new"] = [
        {"type": "AAAA", "ttl": 60, "value": "2001:db8::5"},
        {"type": "TXT", "ttl": 60, "value": "by octodns"},
    ]
    octodns.write(records)
    plan = octodns.run("sync")
    for change in ("Create", "Update", "Delete"):
        assert change in plan, plan
    assert answers(lab, "old", "A") == ["192.0.2.1"], "a plan changes nothing"
    octodns.run("sync", "--doit")
    assert answers(lab, "old", "A") == []
    assert answers(lab, "many", "A") == ["192.0.2.2", "192.0.2.3"]
    assert answers(lab, "new", "AAAA") == ["2001:db8::5"]
    assert "No changes were planned" in octodns.run("sync")
